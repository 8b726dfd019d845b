#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <tuple>

#include "core/error.h"
#include "formats/json.h"
#include "formats/untrusted.h"

namespace ssm {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit
constexpr std::string_view kMetadata = "__metadata__";
constexpr std::array<std::pair<DType, std::string_view>, 6> kDTypes = {{{DType::f64, "F64"},
                                                                        {DType::f32, "F32"},
                                                                        {DType::bf16, "BF16"},
                                                                        {DType::f16, "F16"},
                                                                        {DType::i64, "I64"},
                                                                        {DType::i32, "I32"}}};

struct Entry {
  std::string name;
  Shape shape;
  DType dtype = DType::f32;
  int64_t begin = 0, end = 0;  // bytes of the data section
};

DType dtype_of(const Json& value, const std::string& here) {
  require(value.is_string(), here, " has no dtype");
  const auto& found = value.get_ref<const std::string&>();
  for (const auto& [dtype, name] : kDTypes)
    if (name == found) return dtype;
  throw Error(here, " has dtype ", printable(found), ", expected F64, F32, BF16, F16, I64 or I32");
}

std::vector<int64_t> integers(const Json& value, const std::string& here, std::string_view key) {
  require(value.is_array(), here, " has no ", key, ", expected a list of integers");
  std::vector<int64_t> result;
  for (const Json& one : value) {
    require(one.is_number_unsigned() && one.get<uint64_t>() <= uint64_t{INT64_MAX}, here, ": ", key, " holds ",
            printable(one.dump(-1, ' ', true)), ", expected integers from 0");
    result.push_back(one.get<int64_t>());
  }
  return result;
}

Entry read_entry(const std::string& name, const Json& value, const std::string& where) {
  const std::string here = where + ": tensor " + printable(name);
  require(value.is_object(), here, " is not described by a JSON object");
  const auto member = [&](const char* key) { return value.contains(key) ? value[key] : Json(); };
  Entry entry;
  entry.name = name;
  entry.dtype = dtype_of(member("dtype"), here);
  const std::vector<int64_t> sizes = integers(member("shape"), here, "shape");
  require(sizes.size() <= Shape::kMaxRank, here, " has ", sizes.size(), " dimensions, expected at most ",
          Shape::kMaxRank);
  entry.shape = Shape(sizes);
  const std::vector<int64_t> range = integers(member("data_offsets"), here, "data_offsets");
  require(range.size() == 2 && range[0] <= range[1], here, ": data_offsets are ", printable(range),
          ", expected a begin and an end");
  std::tie(entry.begin, entry.end) = std::pair(range[0], range[1]);
  const auto bytes = checked_bytes(sizes, entry.dtype);
  require(bytes == entry.end - entry.begin, here, " has ", entry.end - entry.begin, " bytes, expected ",
          bytes ? std::to_string(*bytes) : "more than 2^63", " for ", name_of(entry.dtype), " ", entry.shape);
  return entry;
}

void read_metadata(const Json& value, const std::string& where, std::map<std::string, std::string>* metadata) {
  require(value.is_object(), where, ": __metadata__ is not a JSON object");
  for (const auto& [key, one] : value.items()) {
    require(one.is_string(), where, ": __metadata__ ", printable(key), " is not a string");
    if (metadata) (*metadata)[key] = one.get<std::string>();
  }
}

// The format wants every byte of the data to belong to exactly one tensor.
void check_layout(std::vector<Entry>& entries, size_t data_bytes, const std::string& where) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  int64_t end = 0;
  for (const Entry& entry : entries) {
    require(entry.begin == end, where, ": tensor ", printable(entry.name), " begins at byte ", entry.begin,
            " of the data, expected ", end, " (no gaps, no overlaps)");
    end = entry.end;
  }
  require(static_cast<uint64_t>(end) == data_bytes, where, ": holds ", data_bytes, " bytes of data, its header says ",
          end, "; the file is truncated or damaged");
}

std::string quoted(std::string_view text, const Path& path) {
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    throw Error("cannot write ", path.string(), ": the name \"", printable(text), "\" is not UTF-8");
  }
}

std::string header_of(const Path& path, std::span<const TensorSource> tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::string entries;
  for (const auto& [key, value] : metadata)
    entries += (entries.empty() ? "\"__metadata__\":{" : ",") + quoted(key, path) + ":" + quoted(value, path);
  if (!entries.empty()) entries += "}";
  std::set<std::string_view> names = {kMetadata};
  int64_t begin = 0;
  for (const TensorSource& tensor : tensors) {
    const std::string& name = tensor.name;
    require(names.insert(name).second, "cannot write ", path.string(), ": the tensor name ", printable(name),
            " is taken");
    const auto* known =
        std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& pair) { return pair.first == tensor.dtype; });
    DCHECK(known != kDTypes.end());
    std::string shape;
    for (const int64_t size : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
    const int64_t end = begin + tensor.shape.count() * bytes_of(tensor.dtype);
    entries += text(entries.empty() ? "" : ",", quoted(name, path), ":{\"dtype\":\"", known->second, "\",\"shape\":[",
                    shape, "],\"data_offsets\":[", begin, ",", end, "]}");
    begin = end;
  }
  std::string header = "{" + entries + "}";
  constexpr size_t kBoundary = 64;
  header.resize((sizeof(uint64_t) + header.size() + kBoundary - 1) / kBoundary * kBoundary - sizeof(uint64_t), ' ');
  require(header.size() <= kLongestHeader, "cannot write ", path.string(), ": the names of ", tensors.size(),
          " tensors need a header of ", header.size(), " bytes, the format allows ", kLongestHeader);
  return header;
}

}  // namespace

TensorMap read_safetensors(const Path& path, std::map<std::string, std::string>* metadata) {
  const auto file = std::make_shared<MappedFile>(path);
  const std::string where = path.string();
  ByteReader reader(file->bytes(), where);
  const auto header_bytes = reader.number<uint64_t>();
  require(header_bytes <= kLongestHeader && header_bytes <= reader.left(), where, ": says its header has ",
          header_bytes, " bytes, found ", reader.left(), " (at most ", kLongestHeader,
          "); the file is truncated or no safetensors file");
  const std::string_view header = reader.text(header_bytes);
  require(header.starts_with('{'), where, " is no safetensors file: its header is not a JSON object");
  constexpr size_t kDeepest = 3;  // the header, a tensor, its shape
  const Json json = parse_json(header, where + ": header", kDeepest);

  std::vector<Entry> entries;
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadata)
      read_metadata(value, where, metadata);
    else
      entries.push_back(read_entry(name, value, where));
  }
  const auto data = reader.take(reader.left());
  check_layout(entries, data.size(), where);
  TensorMap tensors;
  for (const Entry& entry : entries) {
    const auto memory = aligned_memory(
        file, data.subspan(static_cast<size_t>(entry.begin), static_cast<size_t>(entry.end - entry.begin)),
        bytes_of(entry.dtype));
    tensors.emplace(entry.name, Tensor::borrow(memory.get(), entry.shape, entry.dtype, memory));
  }
  return tensors;
}

void stream_safetensors(const Path& path, std::span<const TensorSource> tensors,
                        const std::map<std::string, std::string>& metadata) {
  const std::string header = header_of(path, tensors, metadata);
  const uint64_t header_bytes = header.size();
  FileWriter file(path);
  file.write(&header_bytes, sizeof header_bytes);
  file.write(header);
  for (const TensorSource& source : tensors) {
    const Tensor made = source.make(), dense = made.contiguous() ? made : made.clone();
    DCHECK(dense.shape() == source.shape && dense.dtype() == source.dtype);
    file.write(dense.raw(), static_cast<size_t>(dense.bytes()));
  }
  file.commit();
}

void write_safetensors(const Path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSource> sources;
  for (const auto& [name, tensor] : tensors) {
    require(static_cast<bool>(tensor), "cannot write ", path.string(), ": tensor ", printable(name), " is absent");
    sources.push_back({name, tensor.dtype(), tensor.shape(), [tensor = tensor] { return tensor; }});
  }
  stream_safetensors(path, sources, metadata);
}

}  // namespace ssm
