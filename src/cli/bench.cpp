// `ssm bench`: how fast this machine runs models and ops, each beside what the machine could do at best.
#include <algorithm>
#include <cstdio>

#include "bench/models.h"
#include "cli/command.h"
#include "core/files.h"
#include "task/task_config.h"

namespace ssm::cli {
namespace {

using bench::Bench;
using bench::GenerateCase;
using bench::Json;
using bench::TrainCase;

// What a GPU is measured on unless flags say otherwise: what the published implementation was recorded at.
const std::vector<TrainCase> kGpuTraining = {{"mamba-130m", 8, 2048},   {"mamba-130m", 32, 2048},
                                             {"mamba-370m", 8, 2048},   {"mamba-1.4b", 4, 2048},
                                             {"mamba2-130m", 32, 2048}, {"mamba2-1.3b", 4, 2048}};
const std::vector<GenerateCase> kGpuWriting = {
    {"mamba-130m", 512, 1},    {"mamba-130m", 512, 64}, {"mamba-1.4b", 2048, 1}, {"mamba-1.4b", 2048, 64},
    {"mamba-1.4b", 2048, 128}, {"mamba-2.8b", 512, 1},  {"mamba-2.8b", 512, 64}, {"mamba2-130m", 512, 1},
    {"mamba2-2.7b", 512, 1},   {"mamba2-2.7b", 512, 64}};

class BenchCommand final : public Command {
 public:
  std::string name() const override { return "bench"; }
  std::string summary() const override { return "measure this machine: ops, prefill, decode, a training step"; }
  std::string example() const override { return "ssm bench --preset mamba-130m --only prefill decode"; }
  Fields fields() override {
    return {{"model", &model_, "a MODEL to measure"},
            {"preset", &preset_, "or a preset with random weights"},
            {"prompt", &prompt_, "tokens of the prefill"},
            {"tokens", &tokens_, "tokens decoded"},
            {"sequences", &sequences_, "sequences that decode together; several counts may be given (default 1 16)"},
            {"train_preset", &train_preset_, "preset of the training step"},
            {"batch", &batch_, "sequences of the training step"},
            {"length", &length_, "tokens of each"},
            {"only", &only_,
             "some of: ops prefill decode train; on a GPU of: ops train generate; on both: step (where a training "
             "step's time goes), lengths (mixers beside each other from 2^8 to 2^17 tokens)"},
            {"mixers", &lengths_.mixers, "of lengths (default attention lstm conv s4d s4 mamba mamba2)"},
            {"d_model", &lengths_.d_model, "model width of lengths"},
            {"layers", &lengths_.layers, "blocks of lengths"},
            {"lengths", &lengths_.lengths, "other lengths than powers of two from 2^8 to 2^17"},
            {"slowest", &lengths_.slowest, "of lengths: longer ones are left out after a step of so many seconds"},
            {"filter", &filter_, "only rows of ops, train and generate whose name and shape contain this"},
            {"csv", &csv_, "write the rows to this file"},
            {"remark", &remark_, "a line for that file, for instance the commit"}};
  }

  int run(const Invocation& invocation) override {
    const Device device = invocation.common.device_kind();
    require(!device.is_ref(), "--device ref: bench measures the fast devices; ref is what they are checked against");
    check_flags(device);
    const bool as_json = invocation.common.json;
    Threads threads(static_cast<int>(invocation.common.threads));
    const DType dtype = invocation.common.dtype_kind().value_or(device.is_cuda() ? DType::bf16 : DType::f32);
    // On the cpu the dtype is that of the models' weights; activations are f32.
    Bench bench(
        threads,
        {.device = device, .dtype = device.is_cuda() ? dtype : DType::f32, .filter = filter_, .quiet = as_json});
    Json measured;
    measured["machine"] = bench.machine();
    measured["threads"] = threads.count();
    if (!as_json)
      std::printf("%s, %d threads\n%s\n", bench.machine().c_str(), threads.count(), bench::table_header().c_str());

    if (wanted("prefill", device) || wanted("decode", device)) read_and_write(bench, dtype, measured);
    if (wanted("train", device))
      for (const TrainCase& c : training_of(invocation, device)) bench::bench_train(bench, c, measured);
    if (wanted("ops", device)) bench_ops(bench);
    if (wanted("generate", device)) generate(bench, invocation, measured);
    if (wanted("step", device))
      for (const TrainCase& c : training_of(invocation, device))
        if (bench.wanted("step", c.shape())) bench::bench_step(bench, c, measured);
    if (wanted("lengths", device)) bench::bench_lengths(bench, lengths_, measured);
    if (as_json) std::printf("%s\n", measured.dump().c_str());
    if (!csv_.empty()) write_file(csv_, bench::csv(bench, remark_));
    return 0;
  }

 private:
  static const std::vector<std::string>& parts(const Device& device) {
    static const std::vector<std::string> cpu = {"ops", "prefill", "decode", "train", "step", "lengths"},
                                          gpu = {"ops", "train", "generate", "step", "lengths"};
    return device.is_cuda() ? gpu : cpu;
  }

  void check_flags(const Device& device) {
    for (const std::string& part : only_) {
      const auto& known = parts(device);
      std::string list;
      for (const std::string& one : known) list += (list.empty() ? "" : ", ") + one;
      require(std::find(known.begin(), known.end(), part) != known.end(), "--only ", part, ": expected some of ", list,
              " on ", name_of(device));
    }
    for (const auto& [flag, value] :
         {std::pair{"prompt", prompt_}, {"tokens", tokens_}, {"batch", batch_}, {"length", length_}})
      require(value >= 1 && value <= 1 << 24, "--", flag, " ", value, ": expected 1 to ", 1 << 24);
    for (const int64_t count : sequences_)
      require(count >= 1 && count <= 4096, "--sequences ", count, ": expected 1 to 4096");
    if (lengths_.mixers.empty()) lengths_.mixers = {"attention", "lstm", "conv", "s4d", "s4", "mamba", "mamba2"};
    for (const std::string& mixer : lengths_.mixers) mixer_named(mixer);
    if (lengths_.lengths.empty())
      for (int power = 8; power <= 17; ++power) lengths_.lengths.push_back(int64_t{1} << power);
    for (const int64_t length : lengths_.lengths)
      require(length >= 1 && length <= 1 << 24, "--lengths ", length, ": expected 1 to ", 1 << 24);
    require(lengths_.d_model >= 64 && lengths_.d_model <= 1 << 16 && lengths_.d_model % 64 == 0, "--d-model ",
            lengths_.d_model, ": expected a multiple of 64 up to ", 1 << 16);
    require(lengths_.layers >= 1 && lengths_.layers <= 1024, "--layers ", lengths_.layers, ": expected 1 to 1024");
  }

  // Without --only everything but the inside of a step and the lengths.
  bool wanted(const std::string& part, const Device& device) const {
    const auto& known = parts(device);
    if (only_.empty())
      return part != "step" && part != "lengths" && std::find(known.begin(), known.end(), part) != known.end();
    return std::find(only_.begin(), only_.end(), part) != only_.end();
  }

  void read_and_write(Bench& bench, DType dtype, Json& measured) const {
    const ModelOptions options{.dtype = dtype};
    const auto model =
        model_.empty() ? Model::create(ModelConfig::preset(preset_), 1, options) : Model::open(model_, options);
    const std::string name = model_.empty() ? preset_ : Path(model_).filename().string();
    measured["model"] = name;
    measured["parameters"] = model->params().count();
    if (wanted("prefill", bench.device())) bench::bench_prefill(bench, *model, name, prompt_, measured);
    if (wanted("decode", bench.device()))
      for (const int64_t sequences : sequences_.empty() ? std::vector<int64_t>{1, 16} : sequences_)
        bench::bench_decode(bench, *model, name, sequences, tokens_, measured);
  }

  std::vector<TrainCase> training_of(const Invocation& invocation, const Device& device) const {
    const bool asked = invocation.has("train_preset") || invocation.has("batch") || invocation.has("length");
    if (device.is_cuda() && !asked) return kGpuTraining;
    return {{train_preset_, batch_, length_}};
  }

  std::vector<GenerateCase> generate_cases(const Invocation& invocation) const {
    const bool asked =
        invocation.has("preset") || invocation.has("model") || invocation.has("prompt") || invocation.has("sequences");
    if (!asked) return kGpuWriting;
    std::vector<GenerateCase> cases;
    for (const int64_t sequences : sequences_.empty() ? std::vector<int64_t>{1, 64} : sequences_)
      cases.push_back({model_.empty() ? preset_ : Path(model_).filename().string(), prompt_, sequences});
    return cases;
  }

  // Cases of one model follow each other, and it is made once.
  void generate(Bench& bench, const Invocation& invocation, Json& measured) const {
    const int64_t tokens = invocation.has("tokens") ? tokens_ : 128;
    std::unique_ptr<Model> model;
    std::string made;
    for (const GenerateCase& c : generate_cases(invocation)) {
      if (!bench.wanted(bench::read_name(bench.dtype()), c.reading()) &&
          !bench.wanted(bench::write_name(bench.dtype()), c.writing()))
        continue;
      if (made != c.model) {
        model.reset();
        model = model_.empty() ? bench::random_model(bench, c.model, false)
                               : Model::open(model_, {.device = bench.device(), .dtype = bench.dtype()});
        made = c.model;
      }
      bench::bench_generate(bench, *model, c, tokens, measured);
    }
  }

  static void bench_ops(Bench& bench) {
    bench::bench_linear(bench);
    bench::bench_cross_entropy(bench);
    bench::bench_selective_scan(bench);
    bench::bench_ssd(bench);
    bench::bench_conv1d(bench);
    bench::bench_rms_norm(bench);
    bench::bench_gated_rms_norm(bench);
    bench::bench_attention(bench);
    bench::bench_lstm(bench);
    bench::bench_fft_conv(bench);
    bench::bench_ssm_kernel(bench);
    bench::bench_lti(bench);
    bench::bench_adamw(bench);
  }

  std::string model_, preset_ = "mamba-130m", train_preset_ = "bytes-10m", csv_, remark_, filter_;
  int64_t prompt_ = 512, tokens_ = 32, batch_ = 8, length_ = 256;
  std::vector<std::string> only_;
  std::vector<int64_t> sequences_;
  bench::LengthsCase lengths_;
};

}  // namespace

std::unique_ptr<Command> make_bench() { return std::make_unique<BenchCommand>(); }

}  // namespace ssm::cli
