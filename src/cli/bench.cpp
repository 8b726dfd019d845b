// `ssm bench`: how fast this machine runs models and ops, each beside what the machine could do at best.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "bench/harness.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "core/files.h"
#include "core/memory.h"
#include "models/model.h"
#include "ops/selective_scan/selective_scan.h"
#include "train/optimizer.h"

namespace ssm::cli {
namespace {

using bench::Bench;
using bench::MemoryReader;
using bench::Timing;

using Json = nlohmann::ordered_json;

// The matrices of a model's linear layers, (out, in). The head is apart: prefill needs one row of it.
struct Projections {
  std::vector<Matrix<float>> layers;
  Matrix<float> head;
};

Projections projections_of(const Model& model) {
  Projections found;
  for (const auto& param : model.params().all()) {
    const Tensor& value = param->var.value;
    if (param->name == "backbone.embedding.weight" || param->name == "lm_head.weight")
      found.head = value.matrix<float>();
    else if (param->name.ends_with("_proj.weight"))
      found.layers.push_back(value.matrix<float>());
  }
  return found;
}

// Bare matrix products of the shapes a pass over `t` tokens needs, operands where the model has them or in scratch.
class BarePasses {
 public:
  BarePasses(const Projections& projections, int64_t t, int threads)
      : projections_(projections), t_(t), threads_(threads) {
    int64_t widest = projections.head.rows, largest = 0;
    for (const auto& weight : projections.layers) {
      widest = std::max({widest, weight.rows, weight.columns});
      largest = std::max(largest, weight.rows * weight.columns);
    }
    a_ = bench::random("a", {t, widest});
    b_ = Tensor::zeros({t, widest}, DType::f32);
    gradient_ = Tensor::zeros({std::max(largest, projections.head.rows * projections.head.columns)}, DType::f32);
  }
  void forward() const {
    for (const auto& weight : projections_.layers) multiply(weight);
  }
  // y = x W^T, dx = dy W, dW = dy^T x for every layer and the head.
  void train() const {
    for (const auto& weight : projections_.layers) multiply(weight), differentiate(weight);
    multiply(projections_.head), differentiate(projections_.head);
  }
  double forward_operations() const {
    double sum = 0;
    for (const auto& weight : projections_.layers) sum += operations(weight);
    return sum;
  }
  double train_operations() const { return 3 * (forward_operations() + operations(projections_.head)); }

 private:
  double operations(const Matrix<float>& weight) const {
    return 2.0 * static_cast<double>(t_ * weight.rows * weight.columns);
  }
  Matrix<float> columns(const Tensor& of, int64_t count) const { return {of.data<float>(), t_, count, count}; }
  void multiply(const Matrix<float>& weight) const {
    bench::blas_gemm(columns(a_, weight.columns), false, weight, true, columns(b_, weight.rows), threads_);
  }
  void differentiate(const Matrix<float>& weight) const {
    bench::blas_gemm(columns(a_, weight.rows), false, weight, false, columns(b_, weight.columns), threads_);
    const Matrix<float> dW{gradient_.data<float>(), weight.rows, weight.columns, weight.columns};
    bench::blas_gemm(columns(a_, weight.rows), true, columns(a_, weight.columns), false, dW, threads_);
  }
  const Projections& projections_;
  int64_t t_;
  int threads_;
  Tensor a_, b_, gradient_;
};

Tensor some_ids(int64_t count, int64_t vocab) {
  const Tensor ids = Tensor::empty({count}, DType::i64);
  const Rng rng(1, "ids");
  for (int64_t i = 0; i < count; ++i)
    ids.data<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
  return ids;
}

void bench_prefill(Bench& bench, const Model& model, const std::string& name, int64_t prompt, Json& out) {
  const Tensor ids = some_ids(prompt, model.config().vocab_size);
  StatePool pool(model.lm().state_spec(), 1);
  const Seqs seqs = Seqs::dense(1, prompt);
  const auto prefill = [&] {
    const Var hidden = model.lm().hidden(bench.ctx(), ids, seqs, pool.state());
    model.lm().logits(bench.ctx(), {hidden.value.rows(prompt - 1, prompt), {}});
  };
  const auto tokens = static_cast<double>(prompt);
  bench::Row row{.group = "model",
                 .name = "prefill " + std::string(name_of(model.options().dtype)),
                 .shape = text(name, ", ", prompt, " tokens"),
                 .unit = "tokens/s"};
  if (model.options().dtype == DType::f32) {
    const Projections projections = projections_of(model);
    const BarePasses bare(projections, prompt, bench.threads().count());
    const auto [ours, gemm] = bench::time_in_turn(prefill, [&] { bare.forward(); });
    row.timing = ours, row.limit = tokens / gemm.median, row.limit_name = "its bare sgemm";
    out["prefill_gemm_gflops"] = bare.forward_operations() / gemm.median / 1e9;
    out["prefill_share_of_gemm"] = gemm.median / ours.median;
  } else {
    row.timing = bench::time(prefill);
  }
  row.rate = tokens / row.timing.median;
  out["prefill_tokens_per_second"] = row.rate;
  const double seconds = row.timing.median;
  bench.add(std::move(row));

  // The share of Mamba's scan: the same call the mixers make, times their number.
  const auto found = std::find_if(model.params().all().begin(), model.params().all().end(),
                                  [](const auto& param) { return param->name.ends_with("A_log"); });
  if (found == model.params().all().end() || (*found)->var.value.rank() != 2) return;
  const int64_t e = (*found)->var.value.size(0), n = (*found)->var.value.size(1);
  const auto input = [&](const char* what, const Shape& shape) { return Var{bench::random(what, shape, -3, 1), {}}; };
  const ScanIn in{.x = input("x", {prompt, e}),
                  .dt = input("dt", {prompt, e}),
                  .A_log = (*found)->var,
                  .B = input("B", {prompt, n}),
                  .C = input("C", {prompt, n}),
                  .D = input("D", {e}),
                  .dt_bias = input("bias", {e}),
                  .z = input("z", {prompt, e})};
  const Timing scan = bench::time([&] { selective_scan(bench.ctx(), in, seqs, nullptr); });
  const auto layers = static_cast<double>(model.config().n_layer);
  bench.add({.group = "model",
             .name = "scans of a prefill",
             .shape = text(model.config().n_layer, " x ", prompt, " x ", e),
             .timing = scan,
             .rate = layers * scan.median * 1e3,
             .unit = "ms",
             .limit = seconds * 1e3,
             .limit_name = "the prefill"});
  out["scan_share_of_prefill"] = layers * scan.median / seconds;
}

// `sequences` of the model write `tokens` each, in step.
void bench_decode(Bench& bench, const Model& model, const std::string& name, int64_t sequences, int64_t tokens,
                  Json& out) {
  StatePool pool(model.lm().state_spec(), sequences);
  const Seqs seqs = Seqs::dense(sequences, 1);
  const Tensor ids = Tensor::zeros({sequences}, DType::i64);
  const auto decode = [&] {
    for (int64_t i = 0; i < tokens; ++i) {
      const Tensor logits =
          model.lm().logits(bench.ctx(), model.lm().hidden(bench.ctx(), ids, seqs, pool.state())).value;
      const auto rows = logits.matrix<float>();
      for (int64_t s = 0; s < sequences; ++s)
        ids.data<int64_t>()[s] = std::max_element(rows[s], rows[s] + model.config().vocab_size) - rows[s];
    }
  };
  const MemoryReader reader(bench.threads());
  const auto [ours, reading] = bench::time_in_turn(decode, [&] {
    for (int64_t i = 0; i < tokens; ++i) reader.read();
  });
  const auto steps = static_cast<double>(tokens), all = static_cast<double>(sequences * tokens);
  const double bandwidth = steps * reader.bytes() / reading.median, rate = all / ours.median;
  // A step reads the weights once for all sequences (a tied embedding as the head; an untied one by single rows), and
  // reads and writes the state of each.
  const double bytes = static_cast<double>(model.params().bytes() + 2 * sequences * bytes_of(model.lm().state_spec()));
  const double limit = static_cast<double>(sequences) * bandwidth / bytes;
  bench.add({.group = "model",
             .name = "decode " + std::string(name_of(model.options().dtype)),
             .shape = text(name, ", ", sequences, " x ", tokens, " tokens"),
             .timing = ours,
             .rate = rate,
             .unit = "tokens/s",
             .limit = limit,
             .limit_name = "bytes over memory"});
  Json& at = out["decode"][std::to_string(sequences)];
  at["tokens_per_second"] = rate;
  at["share_of_bandwidth"] = rate / limit;
  at["read_bandwidth_gb_per_second"] = bandwidth / 1e9;
}

void bench_train(Bench& bench, const std::string& preset, int64_t batch, int64_t length, Json& out) {
  const auto model = Model::create(ModelConfig::preset(preset), 1, {.trainable = true});
  const int64_t tokens = batch * length;
  const Tensor ids = some_ids(tokens, model->config().vocab_size),
               targets = some_ids(tokens, model->config().vocab_size);
  const Seqs seqs = Seqs::dense(batch, length);
  Optimizer optimizer(model->params());
  int64_t step = 0;
  std::vector<SavedBytes> saved;
  const auto one_step = [&] {
    model->params().forget_gradients();
    Tape tape;
    model->params().mark_on(tape);
    const Var loss = model->lm().loss(bench.ctx(&tape), ids, targets, seqs);
    saved = tape.report();
    tape.backward(loss);
    optimizer.update(bench.ctx(), {}, 1e-4, ++step);
  };
  one_step();
  reset_memory_peak();
  const Projections projections = projections_of(*model);
  const BarePasses bare(projections, tokens, bench.threads().count());
  const auto [ours, gemm] = bench::time_in_turn(one_step, [&] { bare.train(); });
  const double rate = static_cast<double>(tokens) / ours.median;
  bench.add({.group = "model",
             .name = "train step f32",
             .shape = text(preset, ", ", batch, " x ", length),
             .timing = ours,
             .rate = rate,
             .unit = "tokens/s",
             .limit = static_cast<double>(tokens) / gemm.median,
             .limit_name = "its bare sgemm"});
  out["train_preset"] = preset;
  out["train_parameters"] = model->params().count();
  out["train_tokens_per_second"] = rate;
  out["train_share_of_gemm"] = gemm.median / ours.median;
  out["train_gemm_gflops"] = bare.train_operations() / gemm.median / 1e9;
  out["train_peak_bytes"] = memory_stats().peak;
  for (const SavedBytes& row : saved) out["train_saved_bytes"][row.op] = row.bytes;
}

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
            {"only", &only_, "some of: ops prefill decode train"},
            {"csv", &csv_, "write the rows to this file"},
            {"remark", &remark_, "a line for that file, for instance the commit"}};
  }

  int run(const Invocation& invocation) override {
    const std::vector<std::string> parts = {"ops", "prefill", "decode", "train"};
    for (const std::string& part : only_)
      require(std::find(parts.begin(), parts.end(), part) != parts.end(), "--only ", part,
              ": expected some of ops, prefill, decode, train");
    for (const auto& [flag, value] :
         {std::pair{"prompt", prompt_}, {"tokens", tokens_}, {"batch", batch_}, {"length", length_}})
      require(value >= 1 && value <= 1 << 24, "--", flag, " ", value, ": expected 1 to ", 1 << 24);
    for (const int64_t count : sequences_)
      require(count >= 1 && count <= 4096, "--sequences ", count, ": expected 1 to 4096");
    require(invocation.common.device_kind() == Device::cpu(), "--device ", invocation.common.device,
            ": bench measures the cpu");
    const auto wanted = [&](const char* part) {
      return only_.empty() || std::find(only_.begin(), only_.end(), part) != only_.end();
    };
    const bool as_json = invocation.common.json;
    Threads threads(static_cast<int>(invocation.common.threads));
    Bench bench(threads, as_json);
    Json measured;
    measured["machine"] = bench::machine();
    measured["threads"] = threads.count();
    if (!as_json)
      std::printf("%s, %d threads\n%s\n", bench::machine().c_str(), threads.count(), bench::table_header().c_str());

    if (wanted("prefill") || wanted("decode")) {
      const ModelOptions options{.dtype = invocation.common.dtype_kind().value_or(DType::f32)};
      const auto model =
          model_.empty() ? Model::create(ModelConfig::preset(preset_), 1, options) : Model::open(model_, options);
      const std::string name = model_.empty() ? preset_ : Path(model_).filename().string();
      measured["model"] = name;
      measured["parameters"] = model->params().count();
      if (wanted("prefill")) bench_prefill(bench, *model, name, prompt_, measured);
      if (wanted("decode"))
        for (const int64_t sequences : sequences_.empty() ? std::vector<int64_t>{1, 16} : sequences_)
          bench_decode(bench, *model, name, sequences, tokens_, measured);
    }
    if (wanted("train")) bench_train(bench, train_preset_, batch_, length_, measured);
    if (wanted("ops")) {
      bench::bench_linear(bench);
      bench::bench_selective_scan(bench);
      bench::bench_ssd(bench);
      bench::bench_conv1d(bench);
      bench::bench_rms_norm(bench);
      bench::bench_gated_rms_norm(bench);
      bench::bench_adamw(bench);
    }
    if (as_json) std::printf("%s\n", measured.dump().c_str());
    if (!csv_.empty()) write_file(csv_, bench::csv(bench.rows(), remark_, threads.count()));
    return 0;
  }

 private:
  std::string model_, preset_ = "mamba-130m", train_preset_ = "bytes-10m", csv_, remark_;
  int64_t prompt_ = 512, tokens_ = 32, batch_ = 8, length_ = 256;
  std::vector<std::string> only_;
  std::vector<int64_t> sequences_;
};

}  // namespace

std::unique_ptr<Command> make_bench() { return std::make_unique<BenchCommand>(); }

}  // namespace ssm::cli
