#include "formats/torch_bin.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <string_view>

#include "core/error.h"
#include "formats/pickle.h"
#include "formats/untrusted.h"
#include "formats/zip.h"

namespace ssm {
namespace {

using Kind = PickleValue::Kind;

constexpr std::string_view kTensor = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kParameter = "torch._utils._rebuild_parameter";

struct StorageType {
  std::string_view global;
  std::optional<DType> dtype;  // none: known to PyTorch, not to this program
};
constexpr std::array<StorageType, 15> kStorageTypes = {{{"torch.DoubleStorage", DType::f64},
                                                        {"torch.FloatStorage", DType::f32},
                                                        {"torch.BFloat16Storage", DType::bf16},
                                                        {"torch.HalfStorage", DType::f16},
                                                        {"torch.LongStorage", DType::i64},
                                                        {"torch.IntStorage", DType::i32},
                                                        {"torch.ShortStorage", std::nullopt},
                                                        {"torch.CharStorage", std::nullopt},
                                                        {"torch.ByteStorage", std::nullopt},
                                                        {"torch.BoolStorage", std::nullopt},
                                                        {"torch.ComplexFloatStorage", std::nullopt},
                                                        {"torch.ComplexDoubleStorage", std::nullopt},
                                                        {"torch.QInt8Storage", std::nullopt},
                                                        {"torch.QUInt8Storage", std::nullopt},
                                                        {"torch.QInt32Storage", std::nullopt}}};

const Pickle::Globals& allowed_globals() {
  static const Pickle::Globals allowed = [] {
    Pickle::Globals all = {{"collections.OrderedDict", Pickle::Global::dict},
                           {std::string(kTensor), Pickle::Global::function},
                           {std::string(kParameter), Pickle::Global::function}};
    for (const StorageType& type : kStorageTypes) all.emplace(type.global, Pickle::Global::name);
    return all;
  }();
  return allowed;
}

bool is_call(const PickleValue& value, std::string_view function) {
  return value.is(Kind::call) && value.text == function;
}

bool is_tensor(const PickleValue& value) { return is_call(value, kTensor) || is_call(value, kParameter); }

bool holds_tensors(const PickleValue& dict) {
  for (size_t i = 1; i < dict.items.size(); i += 2)
    if (is_tensor(*dict.items[i])) return true;
  return false;
}

// The dict whose values are the weights: a usual key of a training checkpoint, else the top itself, else the only dict
// of tensors in it.
const PickleValue& find_state_dict(const PickleValue& top, const std::string& where) {
  require(top.is(Kind::dict), where, " holds no dict of tensors; save model.state_dict()");
  constexpr std::array<std::string_view, 3> kUsual = {"state_dict", "model_state_dict", "model"};
  const PickleValue* only = nullptr;
  std::string names;
  std::set<const PickleValue*> seen;  // a hostile file may mention one large dict a million times
  for (size_t i = 0; i < top.items.size(); i += 2) {
    const PickleValue &key = *top.items[i], &value = *top.items[i + 1];
    if (!value.is(Kind::dict) || !seen.insert(&value).second || !holds_tensors(value)) continue;
    const bool named = key.is(Kind::text);
    if (named && std::find(kUsual.begin(), kUsual.end(), key.text) != kUsual.end()) return value;
    names += (only ? ", " : "") + (named ? printable(key.text) : "?");
    only = only ? &top : &value;
  }
  if (holds_tensors(top)) return top;
  require(only != nullptr, where, " holds no tensors; save model.state_dict()");
  require(only != &top, where, " holds several dicts of tensors (", printable(names),
          "), expected one; save model.state_dict() alone");
  return *only;
}

class TorchFile {
 public:
  explicit TorchFile(const Path& path)
      : file_(std::make_shared<MappedFile>(path)), where_(path.string()), archive_(zip_of(file_)), root_(find_root()) {
    if (archive_.contains(root_ + "byteorder")) {
      const std::string_view order = text_of(archive_.contents(root_ + "byteorder"));
      require(order == "little", where_, ": byte order is \"", printable(order),
              "\", expected \"little\"; save it again on a little-endian machine");
    }
  }

  TensorMap tensors() {
    const Pickle pickle(archive_.contents(root_ + "data.pkl"), allowed_globals(), where_);
    const PickleValue& dict = find_state_dict(pickle.result(), where_);
    TensorMap result;
    for (size_t i = 0; i < dict.items.size(); i += 2) {
      const PickleValue &key = *dict.items[i], &value = *dict.items[i + 1];
      if (!is_tensor(value)) continue;
      require(key.is(Kind::text), where_, " holds a tensor whose key is no text; save model.state_dict()");
      result.insert_or_assign(std::string(key.text), tensor(value, where_ + ": tensor " + printable(key.text)));
    }
    return result;
  }

 private:
  struct Storage {
    std::shared_ptr<void> memory;
    DType dtype = DType::f32;
    int64_t count = 0;
  };

  static std::string_view text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  static ZipArchive zip_of(const std::shared_ptr<MappedFile>& file) {
    const std::string_view bytes = text_of(file->bytes());
    const std::string where = file->path().string();
    require(!bytes.starts_with('\x80'), where,
            " is a bare pickle or a PyTorch file from before 1.6; if you trust it, save it again with PyTorch 1.6 or "
            "later: torch.save(torch.load(FILE, map_location=\"cpu\"), FILE)");
    require(bytes.starts_with("PK\x03\x04"), where, " is no PyTorch file; expected a zip archive made by torch.save");
    return ZipArchive(file);
  }

  // Members lie under one folder named after the file at the time of saving.
  std::string find_root() const {
    constexpr std::string_view kProgram = "/data.pkl";
    for (const auto& [name, member] : archive_.members())
      if (name.ends_with(kProgram) && name.find('/') == name.size() - kProgram.size())
        return name.substr(0, name.size() - kProgram.size() + 1);
    throw Error(where_, " is a zip archive without data.pkl, so not made by torch.save");
  }

  int64_t integer(const PickleValue& value, const std::string& here, std::string_view what) const {
    require(value.is(Kind::integer) && value.integer >= 0, here, ": its ", what,
            value.is(Kind::integer) ? text(" is ", value.integer) : " is no integer", ", expected an integer from 0");
    return value.integer;
  }

  std::vector<int64_t> integers(const PickleValue& value, const std::string& here, std::string_view what) const {
    require(value.is(Kind::tuple) || value.is(Kind::list), here, ": its ", what, " is no tuple");
    require(value.items.size() <= Shape::kMaxRank, here, " has ", value.items.size(), " dimensions, expected at most ",
            Shape::kMaxRank);
    std::vector<int64_t> result;
    for (const PickleValue* item : value.items) result.push_back(integer(*item, here, what));
    return result;
  }

  // From the persistent id ("storage", type, key, device, count). One key is one piece of memory, so tensors that
  // shared a storage still do.
  Storage storage(const PickleValue& value, const std::string& here) {
    const PickleValue* id = value.is(Kind::persistent) ? value.items[0] : nullptr;
    const bool whole = id && id->is(Kind::tuple) && id->items.size() == 5 && id->items[0]->is(Kind::text) &&
                       id->items[0]->text == "storage" && id->items[1]->is(Kind::global) &&
                       id->items[2]->is(Kind::text);
    require(whole, here, " has no storage that torch.save would write");
    const std::string_view type = id->items[1]->text;
    const auto* known = std::find_if(kStorageTypes.begin(), kStorageTypes.end(),
                                     [&](const StorageType& candidate) { return candidate.global == type; });
    require(known != kStorageTypes.end() && known->dtype, here, " has a ", type,
            ", expected Double, Float, BFloat16, Half, Long or Int; convert it before saving");
    Storage result;
    result.dtype = *known->dtype;
    result.count = integer(*id->items[4], here, "storage size");
    const std::string member = root_ + "data/" + std::string(id->items[2]->text);
    const auto bytes = archive_.contents(member);
    require(checked_bytes({&result.count, 1}, result.dtype) == static_cast<int64_t>(bytes.size()), here,
            ": its storage has ", bytes.size(), " bytes, expected ", result.count, " elements of ",
            name_of(result.dtype));
    std::shared_ptr<void>& memory = memory_[member];
    if (!memory) memory = aligned_memory(file_, bytes, kWidest);
    result.memory = memory;
    return result;
  }

  // _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])
  Tensor tensor(const PickleValue& value, const std::string& here) {
    if (is_call(value, kParameter)) {  // _rebuild_parameter(tensor, requires_grad, hooks)
      const auto& wrapped = value.arguments();
      require(!wrapped.empty() && is_call(*wrapped[0], kTensor), here, " is a parameter without a tensor");
      return tensor(*wrapped[0], here);
    }
    const auto& arguments = value.arguments();
    require(arguments.size() == 6 || arguments.size() == 7, here, " is described by ", arguments.size(),
            " values, expected 6 or 7");
    require(arguments.size() == 6 || !arguments[6]->is(Kind::dict) || arguments[6]->items.empty(), here,
            " is a lazy conjugate or negative view; call resolve_conj() or resolve_neg() before saving");
    const Storage source = storage(*arguments[0], here);
    const int64_t offset = integer(*arguments[1], here, "offset");
    const Shape shape(integers(*arguments[2], here, "size"));
    const std::vector<int64_t> saved_strides = integers(*arguments[3], here, "stride");
    require(static_cast<size_t>(shape.rank()) == saved_strides.size(), here, ": its size has ", shape.rank(),
            " dimensions, its stride ", saved_strides.size());
    require(checked_bytes({shape.begin(), shape.end()}, source.dtype).has_value(), here, ": its size ", shape,
            " is beyond 64 bits");

    // Where the stride cannot matter PyTorch may write anything; the row-major one keeps such tensors contiguous.
    Shape strides = shape;
    int64_t row_major = 1, last = offset;
    bool inside = offset <= source.count;
    for (int i = shape.rank() - 1; i >= 0; --i) {
      int64_t reach = 0;
      strides[i] = shape.count() == 0 || shape[i] == 1 ? row_major : saved_strides[static_cast<size_t>(i)];
      row_major *= shape[i];
      if (shape.count() == 0) continue;
      inside = inside && !__builtin_mul_overflow(shape[i] - 1, strides[i], &reach) &&
               !__builtin_add_overflow(last, reach, &last);
    }
    require(inside && (shape.count() == 0 || last < source.count), here, ": size ", shape, " with stride ", strides,
            " from element ", offset, " leaves its storage of ", source.count, " elements");
    auto* first = static_cast<std::byte*>(source.memory.get()) + offset * bytes_of(source.dtype);
    return Tensor::borrow(first, shape, source.dtype, source.memory, &strides);
  }

  static constexpr int64_t kWidest = 8;  // a storage is aligned for any dtype, in case two tensors disagree on it

  std::shared_ptr<MappedFile> file_;
  std::string where_;
  ZipArchive archive_;
  std::string root_;                                     // "pytorch_model/"
  std::map<std::string, std::shared_ptr<void>> memory_;  // by member
};

}  // namespace

TensorMap read_torch_bin(const Path& path) { return TorchFile(path).tensors(); }

}  // namespace ssm
