// Reading and writing. The bare passes of the cpu's rows run in turn with what they are the limit of.
#include <algorithm>
#include <chrono>

#include "bench/models.h"
#include "engine/batch.h"
#include "ops/selective_scan/selective_scan.h"

namespace ssm::bench {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void wait_for(const Device& device) {
  if constexpr (kHasCuda)
    if (device.is_cuda()) cuda::synchronize(device);
}

// Bytes that a step of `sequences` moves: the weights once for all (a tied embedding as the head; an untied one by
// single rows), and the state of each, read and written.
double bytes_of_step(const Model& model, int64_t sequences) {
  return static_cast<double>(model.params().bytes() + 2 * sequences * bytes_of(model.lm().state_spec()));
}

// Prompts that are all different, in slots of their own.
class Texts {
 public:
  Texts(const Model& model, int64_t sequences, int64_t prompt)
      : model_(model),
        prompt_(prompt),
        ids_(random_ids(sequences * prompt, model.config().vocab_size)),
        pool_(model.lm().state_spec(), sequences, model.options().device) {
    for (int64_t s = 0; s < sequences; ++s) slots_.push_back(pool_.acquire());
  }
  StatePool& pool() { return pool_; }
  std::span<const int64_t> prompt(int64_t s) const {
    return ids_.span<int64_t>().subspan(static_cast<size_t>(s * prompt_), static_cast<size_t>(prompt_));
  }
  // From the beginning again, nothing fed yet.
  std::vector<std::unique_ptr<Sequence>> begin() {
    std::vector<std::unique_ptr<Sequence>> all;
    for (const StatePool::Slot slot : slots_) {
      pool_.zero(slot);
      all.push_back(std::make_unique<Sequence>(model_, pool_, slot));
      all.back()->read(prompt(static_cast<int64_t>(all.size()) - 1));
    }
    return all;
  }

 private:
  const Model& model_;
  int64_t prompt_;
  Tensor ids_;
  StatePool pool_;
  std::vector<StatePool::Slot> slots_;
};

// What was chosen a token at a time must be what one forward over the whole text finds likeliest, or as good: products
// of other shapes round otherwise.
void check_written(const Bench& bench, const Model& model, std::span<const int64_t> prompt,
                   const std::vector<int64_t>& written) {
  std::vector<int64_t> ids(prompt.begin(), prompt.end());
  ids.insert(ids.end(), written.begin(), written.end());
  const auto t = static_cast<int64_t>(ids.size()), first = static_cast<int64_t>(prompt.size()) - 1;
  const Var all = model.lm().hidden(bench.ctx(), Tensor::of(ids), Seqs::dense(1, t));
  const Tensor logits = exact_copy(model.lm().logits(bench.ctx(), {all.value.rows(first, t - 1), {}}).value);
  const auto rows = logits.matrix<double>();
  for (int64_t i = 0; i < rows.rows; ++i) {
    const auto [least, most] = std::minmax_element(rows[i], rows[i] + model.config().vocab_size);
    const double chosen = rows[i][written[static_cast<size_t>(i)]];
    require(chosen >= *most - 0.05 * (*most - *least), "token ", i, " of those written has the logit ", chosen,
            "; one forward over the text gives ", *least, " to ", *most);
  }
}

}  // namespace

void bench_prefill(Bench& bench, const Model& model, const std::string& name, int64_t prompt, Json& out) {
  const Tensor ids = random_ids(prompt, model.config().vocab_size);
  StatePool pool(model.lm().state_spec(), 1);
  const Seqs seqs = Seqs::dense(1, prompt);
  const auto prefill = [&] {
    const Var hidden = model.lm().hidden(bench.ctx(), ids, seqs, pool.state());
    model.lm().logits(bench.ctx(), {hidden.value.rows(prompt - 1, prompt), {}});
  };
  const auto tokens = static_cast<double>(prompt);
  Row row{.group = "model",
          .name = "prefill " + std::string(name_of(model.options().dtype)),
          .shape = text(name, ", ", prompt, " tokens"),
          .unit = "tokens/s"};
  if (model.options().dtype == DType::f32) {
    const Projections projections(model);
    const BarePasses bare(projections, prompt, bench.threads().count());
    const auto [ours, gemm] = time_in_turn(prefill, [&] { bare.forward(); });
    row.timing = ours, row.limit = tokens / gemm.median, row.limit_name = "its bare sgemm";
    out["prefill_gemm_gflops"] = bare.forward_operations() / gemm.median / 1e9;
    out["prefill_share_of_gemm"] = gemm.median / ours.median;
  } else {
    row.timing = time(prefill);
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
  const auto input = [&](const char* what, const Shape& shape) { return Var{random(what, shape, -3, 1), {}}; };
  const ScanIn in{.x = input("x", {prompt, e}),
                  .dt = input("dt", {prompt, e}),
                  .A_log = (*found)->var,
                  .B = input("B", {prompt, n}),
                  .C = input("C", {prompt, n}),
                  .D = input("D", {e}),
                  .dt_bias = input("bias", {e}),
                  .z = input("z", {prompt, e})};
  const Timing scan = time([&] { selective_scan(bench.ctx(), in, seqs, nullptr); });
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
  const auto [ours, reading] = time_in_turn(decode, [&] {
    for (int64_t i = 0; i < tokens; ++i) reader.read();
  });
  const auto steps = static_cast<double>(tokens), all = static_cast<double>(sequences * tokens);
  const double bandwidth = steps * reader.bytes() / reading.median, rate = all / ours.median;
  const double limit = static_cast<double>(sequences) * bandwidth / bytes_of_step(model, sequences);
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

std::string read_name(DType dtype) { return text("read ", name_of(dtype)); }
std::string write_name(DType dtype) { return text("write ", name_of(dtype)); }

void bench_generate(Bench& bench, const Model& model, const GenerateCase& c, int64_t tokens, Json& out) {
  constexpr size_t kUnmeasured = 4;  // the first steps are recorded
  const int64_t sequences = c.sequences, prompt = c.prompt;
  const DType dtype = model.options().dtype;
  Texts texts(model, sequences, prompt);
  std::vector<std::unique_ptr<Sequence>> all;
  Batch batch(model, bench.threads(), texts.pool());
  std::vector<double> readings;
  for (int i = 0; i < 3; ++i) {  // the first chooses kernels
    all = texts.begin();
    std::vector<Sequence*> pointers;
    for (const auto& one : all) pointers.push_back(one.get());
    wait_for(bench.device());
    const auto start = Clock::now();
    batch.feed(pointers);
    wait_for(bench.device());
    if (i > 0) readings.push_back(seconds_since(start));
  }
  Json& at = out["generate"][c.reading()];
  const auto count = static_cast<double>(sequences);
  Row reading{.group = "model",
              .name = read_name(dtype),
              .shape = c.reading(),
              .timing = summary(readings),
              .unit = "tokens/s"};
  reading.rate = count * static_cast<double>(prompt) / reading.timing.median;
  if (bench.on_gpu()) {
    // Two operations a weight and token; the head's, or the embedding that stands for it, are for one token alone.
    const double weights =
        static_cast<double>(model.params().count() - model.config().padded_vocab() * model.config().d_model);
    reading.limit = bench.products() / (2 * weights);
    reading.limit_name = "its products";
  }
  at["prefill_tokens_per_second"] = reading.rate;
  bench.add(std::move(reading));

  std::vector<int64_t> written;  // by the last
  const GenerateOptions options{.sampler = {.temperature = 0}, .max_tokens = tokens};
  for (const auto& one : all)
    batch.add(
        *one, options,
        [&, last = one == all.back()](const WrittenToken& token) {
          if (last) written.push_back(token.id);
          return true;
        },
        [](Finish) {});
  std::vector<double> steps;
  for (auto start = Clock::now(); batch.step();) {
    steps.push_back(seconds_since(start));
    start = Clock::now();
  }
  check_written(bench, model, texts.prompt(sequences - 1), written);
  steps.erase(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(std::min(kUnmeasured, steps.size() - 1)));
  Row row{
      .group = "model", .name = write_name(dtype), .shape = c.writing(), .timing = summary(steps), .unit = "tokens/s"};
  row.rate = count / row.timing.median;
  row.limit = count * bench.bandwidth() / bytes_of_step(model, sequences);
  row.limit_name = "weights and states";
  at["tokens_per_second"] = row.rate;
  at["share_of_bandwidth"] = row.rate / row.limit;
  bench.add(std::move(row));
}

}  // namespace ssm::bench
