#include "engine/state_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>

#include "core/error.h"
#include "formats/safetensors.h"

namespace ssm {
namespace {

constexpr std::string_view kVersion = "2";                                          // 1 had no counts of written ids
constexpr std::string_view kOutput = "output", kSeen = "seen", kCounts = "counts";  // no mixer's entry is called so

using Metadata = std::map<std::string, std::string>;

// FNV-1a over 64-bit words, in four chains side by side because each waits for its own multiplication (2.8 MB: 0.2 ms
// instead of 0.8): finds damage, is no protection against intent.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    const char* from = static_cast<const char*>(data);
    constexpr size_t kBlock = 4 * sizeof(uint64_t);
    for (; bytes >= kBlock; from += kBlock, bytes -= kBlock) {
      std::array<uint64_t, 4> words;
      std::memcpy(words.data(), from, kBlock);
      for (size_t i = 0; i < 4; ++i) mix(chains_[i], words[i]);
    }
    for (; bytes > 0;) {
      uint64_t word = 0;  // the last one is padded with zeros
      const size_t taken = std::min(bytes, sizeof word);
      std::memcpy(&word, from, taken);
      mix(chains_[0], word);
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
    uint64_t value = 0;
    for (const uint64_t chain : chains_) mix(value, chain);
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string result;
    for (int shift = 60; shift >= 0; shift -= 4) result += kDigits[(value >> shift) & 15];
    return result;
  }

 private:
  static void mix(uint64_t& chain, uint64_t word) {
    chain = (chain ^ word) * 0x100000001b3u;
    chain ^= chain >> 29;  // multiplication alone never carries a high bit down
  }
  std::array<uint64_t, 4> chains_ = {0xcbf29ce484222325u, 1, 2, 3};  // different, so that blocks cannot swap places
};

// Of each parameter, kRuns runs of kRun elements spread evenly from the first to the last: reading all weights would
// take longer than reading the prompt again. Training, merging and other initial values change every one of them.
void add_sample(Hash& hash, const Tensor& tensor) {
  constexpr int64_t kRuns = 8, kRun = 64;
  const Tensor dense = tensor.contiguous() ? tensor : tensor.clone();
  const Tensor flat = dense.reshape({dense.count()});
  const int64_t length = std::min(kRun, flat.count()), last = flat.count() - length;
  for (int64_t run = 0; run < kRuns; ++run) {
    const int64_t begin = last / (kRuns - 1) * run + last % (kRuns - 1) * run / (kRuns - 1);
    hash.add(flat.rows(begin, begin + length).on(Device::cpu()));
    if (last == 0) return;
  }
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
  const DType output = f64 ? DType::f64 : model.options().device.is_cuda() ? model.options().dtype : DType::f32;
  spec.push_back({std::string(kOutput), {model.config().d_model}, output});
  spec.push_back({std::string(kCounts), {2}, DType::i64});
  return spec;
}

// The reasons are in the order in which they explain each other.
void check_metadata(const std::string& where, Metadata found, const ModelIdentity& expected, const std::string& sum) {
  require(found.contains("ssm_state"), where, " is no state file; expected one written by --state-out");
  require(found["ssm_state"] == kVersion, where, " has version ", found["ssm_state"], " of the state format, expected ",
          kVersion, "; make it anew with --state-out");
  require(found["config"] == expected.config, where,
          " was made by a model with another config; a state belongs to its model");
  require(found["dtype"] == expected.dtype, where, " was made with --dtype ", found["dtype"], ", this model runs in ",
          expected.dtype, "; give the same --dtype and --device");
  require(found["weights"] == expected.weights, where,
          " was made by a model with the same config but other weights; a state belongs to its model");
  require(found["checksum"] == sum, where, " is damaged: its checksum does not fit its contents");
}

}  // namespace

ModelIdentity::ModelIdentity(const Model& model) : dtype(name_of(model.options().dtype)) {
  Hash of_config, of_weights;
  of_config.add(model.config().json());
  for (const auto& param : model.params().all()) {
    of_weights.add(param->name);
    add_sample(of_weights, param->var.value);
  }
  config = of_config.text();
  weights = of_weights.text();
}

void write_state_file(const Path& path, const Model& model, const Snapshot& snapshot) {
  write_state_file(path, model, ModelIdentity(model), snapshot);
}

Snapshot read_state_file(const Path& path, const Model& model) {
  return read_state_file(path, model, ModelIdentity(model));
}

void write_state_file(const Path& path, const Model& model, const ModelIdentity& identity, const Snapshot& snapshot) {
  NamedTensors named;
  auto* from = const_cast<std::byte*>(snapshot.state.data());
  for (const StateEntry& entry : spec_of_saved(model.lm().state_spec(), snapshot.state)) {
    named.emplace_back(entry.name, Tensor::borrow(from, entry.shape, entry.dtype, nullptr));
    from += named.back().second.bytes();
  }
  require(static_cast<bool>(snapshot.output), "cannot write ", path.string(),
          ": nothing was read, so there is no state to keep");
  named.emplace_back(kOutput, snapshot.output);
  named.emplace_back(kCounts, Tensor::of(std::vector<int64_t>{snapshot.tokens, snapshot.written}));
  std::vector<SeenId> seen = snapshot.seen;
  std::sort(seen.begin(), seen.end(), [](const SeenId& a, const SeenId& b) { return a.id < b.id; });
  std::vector<int64_t> flat;
  for (const SeenId& one : seen) flat.insert(flat.end(), {one.id, one.written});
  named.emplace_back(kSeen, Tensor::of(flat).reshape({static_cast<int64_t>(seen.size()), 2}));
  const Metadata metadata = {{"ssm_state", std::string(kVersion)},
                             {"config", identity.config},
                             {"weights", identity.weights},
                             {"dtype", identity.dtype},
                             {"checksum", checksum(TensorMap(named.begin(), named.end()))}};
  write_safetensors(path, named, metadata);
}

Snapshot read_state_file(const Path& path, const Model& model, const ModelIdentity& identity) {
  const std::string where = path.string();
  Metadata metadata;
  const TensorMap tensors = read_safetensors(path, &metadata);
  check_metadata(where, metadata, identity, checksum(tensors));

  // The checksum vouches for what follows unless somebody made the file by hand.
  const auto find = [&](std::string_view name) -> const Tensor& {
    const auto found = tensors.find(std::string(name));
    require(found != tensors.end(), where, " has no tensor ", name, "; make it anew with --state-out");
    return found->second;
  };
  StateSpec spec = expected_tensors(model);
  Snapshot result;
  for (size_t i = 0; i < spec.size(); ++i) {
    StateEntry& entry = spec[i];
    const Tensor& tensor = find(entry.name);
    if (entry.per_token) {  // its rows are the tokens that the entry before it counts
      std::vector<int64_t> sizes = {find(spec[i - 1].name).clone().item<int64_t>()};
      sizes.insert(sizes.end(), entry.shape.begin(), entry.shape.end());
      entry.shape = Shape(sizes);
    }
    require(tensor.shape() == entry.shape && tensor.dtype() == entry.dtype, where, ": ", entry.name, " is ",
            name_of(tensor.dtype()), " ", tensor.shape(), ", this model expects ", name_of(entry.dtype), " ",
            entry.shape);
  }
  require(tensors.size() == spec.size() + 1, where, " has ", tensors.size(), " tensors, this model expects ",
          spec.size() + 1);
  result.state.reserve(static_cast<size_t>(bytes_of(model.lm().state_spec())));
  for (const StateEntry& entry : model.lm().state_spec()) {
    const Tensor& tensor = find(entry.name);  // as write_safetensors leaves it: contiguous
    const auto* bytes = static_cast<const std::byte*>(tensor.raw());
    result.state.insert(result.state.end(), bytes, bytes + tensor.bytes());
  }
  result.output = find(kOutput).clone();
  const Tensor counts = find(kCounts).clone(), seen = find(kSeen).clone();
  result.tokens = counts.data<int64_t>()[0];
  result.written = counts.data<int64_t>()[1];
  require(0 <= result.written && result.written <= result.tokens, where, " says that ", result.written, " of ",
          result.tokens, " tokens were written");
  require(seen.rank() == 2 && seen.size(1) == 2 && seen.dtype() == DType::i64, where, ": ", kSeen, " is ",
          name_of(seen.dtype()), " ", seen.shape(), ", expected i64 (ids, 2)");
  const int64_t vocab = model.config().vocab_size;
  int64_t before = -1, written = 0;
  for (int64_t row = 0; row < seen.size(0); ++row) {
    const int64_t id = seen.data<int64_t>()[2 * row], times = seen.data<int64_t>()[2 * row + 1];
    require(before < id && id < vocab, where, " has seen the id ", id, " after ", before,
            ", expected ascending ids from 0 to ", vocab - 1);
    require(0 <= times && times <= result.written - written, where, " says that the id ", id, " was written ", times,
            " times, and ", result.written, " ids in all");
    result.seen.push_back({id, times});
    before = id;
    written += times;
  }
  require(written == result.written, where, " counts ", written, " written ids, and ", result.written, " in all");
  return result;
}

}  // namespace ssm
