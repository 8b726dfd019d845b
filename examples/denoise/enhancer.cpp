// The U-Net: levels down, the innermost blocks, the same levels up. A level hands its input around what lies inside it.
#include "enhancer.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/context.h"
#include "layers.h"

namespace denoise {
namespace {

struct Level {
  Block down;
  Merge merge;
  Expand expand;
  Block up;
};

}  // namespace

struct Enhancer::Parts {
  Parts(const ssm::Path& path, int count) : threads(count) {
    const Network weights = Network::open(path, {.device = "cpu", .threads = 1});
    const auto names = weights.names();
    const auto has = [&](const std::string& name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    const auto name = [](const char* group, size_t i, const char* rest) {
      return std::string(group) + "." + std::to_string(i) + rest;
    };
    for (const std::string& each : names) parameters += weights.tensor(each).count();

    int64_t channels = 1;
    for (size_t i = 0; i == 0 || has(name("down_ssms", i, ".1.weight")); ++i) {
      Merge merge(weights, name("down_ssms", i, ".1.weight"), channels);
      const int64_t deeper = merge.channels_out(), rate = merge.rate();
      levels.push_back({.down = Block(weights, name("down_ssms", i, ".0"), channels),
                        .merge = std::move(merge),
                        .expand = Expand(weights, name("up_ssms", i, ".0.weight"), deeper, channels, rate),
                        .up = Block(weights, name("up_ssms", i, ".1"), channels)});
      frame *= rate;
      ssm::require(frame <= kLongestFrame, "weights: ", i + 1, " levels merge ", frame,
                   " samples into a step, expected ", kLongestFrame, " at most");
      channels = deeper;
    }
    for (size_t i = 0; i < 2; ++i) {
      inner.emplace_back(weights, name("hid_ssms", i, ""), channels);
      outer.emplace_back(weights, name("last_ssms", i, ""), 1, i == 0 ? Block::End::silu : Block::End::linear);
    }
  }

  // The last row a level must be given before its output row k is there.
  int64_t needed(size_t level, int64_t k) const {
    if (level == levels.size()) return k + inner[0].ahead() + inner[1].ahead();
    const Level& at = levels[level];
    k += at.up.ahead();
    const int64_t rate = at.merge.rate();
    return needed(level + 1, k / rate) * rate + rate - 1 + at.down.ahead();
  }

  static constexpr int64_t kLongestFrame = 1 << 16;  // of samples: 4 s, more than any enhancer looks at as one
  std::vector<Level> levels;
  std::vector<Block> inner, outer;  // the innermost two, and the two behind the U-Net
  int64_t frame = 1, parameters = 0;
  mutable ssm::Threads threads;
};

struct Stream::Parts {
  explicit Parts(const Enhancer::Parts& its_enhancer) : enhancer(its_enhancer) {
    int64_t channels = 1;
    for (const Level& level : enhancer.levels) {
      levels.push_back(
          {.down = level.down.start(), .up = level.up.start(), .merging = Rows(channels), .around = Rows(channels)});
      channels = level.merge.channels_out();
    }
    for (const Block& block : enhancer.inner) inner.push_back(block.start());
    for (const Block& block : enhancer.outer) outer.push_back(block.start());
  }

  Tensor unet(size_t i, const Tensor& x, Extent extent, bool last) {
    const Ctx ctx = {.device = ssm::Device::cpu(), .threads = &enhancer.threads};
    if (i == levels.size()) {
      Tensor y = x;
      for (size_t block = 0; block < inner.size(); ++block)
        y = enhancer.inner[block].forward(ctx, y, inner[block], extent, last);
      return y;
    }
    const Level& level = enhancer.levels[i];
    State& state = levels[i];
    state.around.push(x);
    const Tensor down = level.down.forward(ctx, x, state.down, extent, last);
    const Tensor inside = unet(i + 1, level.merge.forward(ctx, down, state.merging), extent, last);
    const Tensor up = level.expand.forward(ctx, inside);
    if (up) up.add(state.around.take(up.size(0)));
    return level.up.forward(ctx, up, state.up, extent, last);
  }

  std::vector<float> run(std::span<const float> samples, Extent extent, bool last) {
    Tensor y;
    if (!samples.empty()) y = Tensor::of(samples, {static_cast<int64_t>(samples.size()), 1});
    y = unet(0, y, extent, last);
    const Ctx ctx = {.device = ssm::Device::cpu(), .threads = &enhancer.threads};
    for (size_t block = 0; block < outer.size(); ++block)
      y = enhancer.outer[block].forward(ctx, y, outer[block], extent, last);
    std::vector<float> out;
    if (!y) return out;
    out.assign(y.data<float>(), y.data<float>() + std::min(y.count(), samples_in - samples_out));
    samples_out += static_cast<int64_t>(out.size());
    for (const float value : out)
      ssm::require(std::isfinite(value), "the enhancer's output is no finite number near sample ", samples_out,
                   ": samples or weights are too large");
    return out;
  }

  // The published program adds 1 to a whole frame of zeros.
  std::vector<float> padding() const {
    return std::vector<float>(static_cast<size_t>(enhancer.frame - samples_in % enhancer.frame));
  }

  struct State {
    Block::State down, up;
    Rows merging, around;
  };
  const Enhancer::Parts& enhancer;
  std::vector<State> levels;
  std::vector<Block::State> inner, outer;
  int64_t samples_in = 0, samples_out = 0;
};

Enhancer::Enhancer(const ssm::Path& weights, int threads) : parts_(std::make_unique<Parts>(weights, threads)) {}
Enhancer::Enhancer(Enhancer&&) noexcept = default;
Enhancer::~Enhancer() = default;

int64_t Enhancer::parameters() const { return parts_->parameters; }
int64_t Enhancer::frame() const { return parts_->frame; }

int64_t Enhancer::delay() const {
  int64_t longest = 0;
  for (int64_t t = 0; t < frame(); ++t) longest = std::max(longest, parts_->needed(0, t) - t);
  return longest;
}

std::vector<float> Enhancer::enhance(std::span<const float> recording) const {
  Stream::Parts once(*parts_);
  once.samples_in = static_cast<int64_t>(recording.size());
  std::vector<float> padded = once.padding();
  padded.insert(padded.begin(), recording.begin(), recording.end());
  return once.run(padded, Extent::whole, /*last=*/true);
}

Stream Enhancer::stream() const { return Stream(std::make_unique<Stream::Parts>(*parts_)); }

Stream::Stream(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Stream::Stream(Stream&&) noexcept = default;
Stream::~Stream() = default;

std::vector<float> Stream::push(std::span<const float> samples) {
  parts_->samples_in += static_cast<int64_t>(samples.size());
  return parts_->run(samples, Extent::piece, /*last=*/false);
}

std::vector<float> Stream::finish() { return parts_->run(parts_->padding(), Extent::piece, /*last=*/true); }

int64_t Stream::state_bytes() const {
  int64_t bytes = 0;
  for (const Parts::State& level : parts_->levels)
    bytes += level.down.bytes() + level.up.bytes() + level.merging.bytes() + level.around.bytes();
  for (const auto* blocks : {&parts_->inner, &parts_->outer})
    for (const Block::State& block : *blocks) bytes += block.bytes();
  return bytes;
}

}  // namespace denoise
