#include "engine/state_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "core/error.h"
#include "formats/safetensors.h"

namespace ssm {
namespace {

constexpr std::string_view kVersion = "1";
constexpr std::string_view kOutput = "output", kSeen = "seen", kCounts = "counts";  // no mixer's entry is called so

using Metadata = std::map<std::string, std::string>;

// FNV-1a over 64-bit words (the last one padded with zeros): finds damage, is no protection against intent.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    for (; bytes > 0;) {
      uint64_t word = 0;
      const size_t taken = std::min(bytes, sizeof word);
      std::memcpy(&word, from, taken);
      value_ = (value_ ^ word) * 0x100000001b3u;
      value_ ^= value_ >> 29;  // multiplication alone never carries a high bit down
      from += taken;
      bytes -= taken;
    }
  }
  void add(std::string_view text) {
    const uint64_t size = text.size();
    add(&size, sizeof size);
    add(text.data(), text.size());
  }
  void add(const Tensor& tensor) {
    const Tensor dense = tensor.contiguous() ? tensor : tensor.clone();
    add(dense.raw(), static_cast<size_t>(dense.bytes()));
  }
  std::string text() const {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string result;
    for (int shift = 60; shift >= 0; shift -= 4) result += kDigits[(value_ >> shift) & 15];
    return result;
  }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

// The config, and the first elements of each parameter: reading all weights would take longer than the state is worth,
// and training changes every tensor.
Metadata metadata_of(const Model& model) {
  constexpr int64_t kSampled = 64;
  Hash config, weights;
  config.add(model.config().json());
  for (const auto& param : model.params().all()) {
    const Tensor& value = param->var.value;
    weights.add(param->name);
    const Tensor dense = value.contiguous() ? value : value.clone();
    weights.add(dense.reshape({dense.count()}).rows(0, std::min(kSampled, dense.count())));
  }
  return {{"ssm_state", std::string(kVersion)},
          {"config", config.text()},
          {"weights", weights.text()},
          {"dtype", std::string(name_of(model.options().dtype))}};
}

std::string checksum(const TensorMap& tensors) {
  Hash hash;
  for (const auto& [name, tensor] : tensors) {
    hash.add(name);
    hash.add(name_of(tensor.dtype()));
    hash.add(text(tensor.shape()));
    hash.add(tensor);
  }
  return hash.text();
}

// What the file must hold for this model, besides `seen`.
StateSpec expected_tensors(const Model& model) {
  StateSpec spec = model.lm().state_spec();
  const bool f64 = model.options().dtype == DType::f64;
  spec.push_back({std::string(kOutput), {model.config().d_model}, f64 ? DType::f64 : DType::f32});
  spec.push_back({std::string(kCounts), {2}, DType::i64});
  return spec;
}

// The reasons are in the order in which they explain each other.
void check_metadata(const std::string& where, Metadata found, const Model& model, const std::string& sum) {
  require(found.contains("ssm_state"), where, " is no state file; expected one written by --state-out");
  require(found["ssm_state"] == kVersion, where, " has version ", found["ssm_state"], " of the state format, expected ",
          kVersion, "; make it anew with --state-out");
  const Metadata expected = metadata_of(model);
  require(found["config"] == expected.at("config"), where,
          " was made by a model with another config; a state belongs to its model");
  require(found["dtype"] == expected.at("dtype"), where, " was made with --dtype ", found["dtype"],
          ", this model runs in ", expected.at("dtype"), "; give the same --dtype and --device");
  require(found["weights"] == expected.at("weights"), where,
          " was made by a model with the same config but other weights; a state belongs to its model");
  require(found["checksum"] == sum, where, " is damaged: its checksum does not fit its contents");
}

}  // namespace

void write_state_file(const Path& path, const Model& model, const Snapshot& snapshot) {
  NamedTensors named;
  auto* from = const_cast<std::byte*>(snapshot.state.data());
  for (const StateEntry& entry : model.lm().state_spec()) {
    named.emplace_back(entry.name, Tensor::borrow(from, entry.shape, entry.dtype, nullptr));
    from += named.back().second.bytes();
  }
  require(static_cast<bool>(snapshot.output), "cannot write ", path.string(),
          ": nothing was read, so there is no state to keep");
  named.emplace_back(kOutput, snapshot.output);
  named.emplace_back(kCounts, Tensor::of(std::vector<int64_t>{snapshot.tokens, snapshot.written}));
  named.emplace_back(kSeen, Tensor::of(snapshot.seen));
  Metadata metadata = metadata_of(model);
  metadata["checksum"] = checksum(TensorMap(named.begin(), named.end()));
  write_safetensors(path, named, metadata);
}

Snapshot read_state_file(const Path& path, const Model& model) {
  const std::string where = path.string();
  Metadata metadata;
  const TensorMap tensors = read_safetensors(path, &metadata);
  check_metadata(where, metadata, model, checksum(tensors));

  // The checksum vouches for what follows unless somebody made the file by hand.
  const auto find = [&](std::string_view name) -> const Tensor& {
    const auto found = tensors.find(std::string(name));
    require(found != tensors.end(), where, " has no tensor ", name, "; make it anew with --state-out");
    return found->second;
  };
  const StateSpec spec = expected_tensors(model);
  Snapshot result;
  for (const StateEntry& entry : spec) {
    const Tensor& tensor = find(entry.name);
    require(tensor.shape() == entry.shape && tensor.dtype() == entry.dtype, where, ": ", entry.name, " is ",
            name_of(tensor.dtype()), " ", tensor.shape(), ", this model expects ", name_of(entry.dtype), " ",
            entry.shape);
  }
  require(tensors.size() == spec.size() + 1, where, " has ", tensors.size(), " tensors, this model expects ",
          spec.size() + 1);
  for (const StateEntry& entry : model.lm().state_spec()) {
    const Tensor dense = find(entry.name).clone();
    const auto* bytes = static_cast<const std::byte*>(dense.raw());
    result.state.insert(result.state.end(), bytes, bytes + dense.bytes());
  }
  result.output = find(kOutput).clone();
  const Tensor counts = find(kCounts).clone(), seen = find(kSeen).clone();
  result.tokens = counts.data<int64_t>()[0];
  result.written = counts.data<int64_t>()[1];
  require(0 <= result.written && result.written <= result.tokens, where, " says that ", result.written, " of ",
          result.tokens, " tokens were written");
  require(seen.rank() == 1 && seen.dtype() == DType::i64, where, ": ", kSeen, " is ", name_of(seen.dtype()), " ",
          seen.shape(), ", expected a list of i64");
  result.seen.assign(seen.data<int64_t>(), seen.data<int64_t>() + seen.count());
  const int64_t vocab = model.config().vocab_size;
  for (const int64_t id : result.seen)
    require(0 <= id && id < vocab, where, " has seen the id ", id, ", expected 0 to ", vocab - 1);
  return result;
}

}  // namespace ssm
