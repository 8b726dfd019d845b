// The enhancer against PyTorch in float64 (tools/make_denoise_golden.py), whole and live in blocks of every kind; with
// SSM_DENOISE_DATA, a directory of the published weights and clips, against those; and the program: files and errors.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "enhancer.h"
#include "formats/safetensors.h"
#include "tests/program.h"
#include "wav.h"

namespace denoise {
namespace {

namespace fs = std::filesystem;
using ssm::Outcome;
using ssm::Path;
using ssm::Words;

const Path kData = DENOISE_TESTDATA;

std::vector<float> read(const Path& path) {
  WavReader reader(path);
  std::vector<float> samples(static_cast<size_t>(reader.samples()));
  reader.read(samples);
  return samples;
}

std::vector<float> golden() {
  const ssm::Tensor clean = ssm::read_safetensors(kData / "clean.safetensors").at("clean").to(ssm::DType::f32);
  return {clean.data<float>(), clean.data<float>() + clean.count()};
}

// `sizes` of pieces, over and over.
std::vector<float> live(const Enhancer& enhancer, const std::vector<float>& samples, const std::vector<size_t>& sizes) {
  Stream stream = enhancer.stream();
  std::vector<float> out;
  const auto add = [&](const std::vector<float>& more) { out.insert(out.end(), more.begin(), more.end()); };
  for (size_t at = 0, i = 0; at < samples.size(); ++i) {
    const size_t size = std::min(sizes[i % sizes.size()], samples.size() - at);
    add(stream.push(std::span(samples).subspan(at, size)));
    at += size;
    EXPECT_GE(static_cast<int64_t>(out.size()), static_cast<int64_t>(at) - enhancer.delay());
  }
  add(stream.finish());
  return out;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return worst;
}

// f32 through ten layers of sums of 20 modes, outputs of size 1.
constexpr double kTolerance = 1e-5;

TEST(Denoise, WholeIsWhatPyTorchMakesOfIt) {
  EXPECT_LT(distance(Enhancer(kData / "weights.safetensors").enhance(read(kData / "noisy.wav")), golden()), kTolerance);
}

TEST(Denoise, LiveIsTheSameInPiecesOfAnySize) {
  const Enhancer enhancer(kData / "weights.safetensors", 1);
  const std::vector<float> noisy = read(kData / "noisy.wav");
  for (const std::vector<size_t>& sizes :
       {std::vector<size_t>{1}, {24}, {23, 0, 1, 25}, {7, 300}, {noisy.size()}, {noisy.size() - 1}})
    EXPECT_LT(distance(live(enhancer, noisy, sizes), golden()), kTolerance) << testing::PrintToString(sizes);
}

// Around the frame, whose multiples are given a whole frame of zeros.
TEST(Denoise, ShortRecordings) {
  const Enhancer enhancer(kData / "weights.safetensors", 1);
  const std::vector<float> noisy = read(kData / "noisy.wav");
  ASSERT_EQ(enhancer.frame(), 24);
  for (const int64_t length : {1, 2, 23, 24, 25, 47, 48, 49}) {
    const std::vector<float> part(noisy.begin(), noisy.begin() + length);
    const std::vector<float> whole = enhancer.enhance(part);
    EXPECT_LT(distance(live(enhancer, part, {1}), whole), kTolerance) << length;
    EXPECT_LT(distance(live(enhancer, part, {5}), whole), kTolerance) << length;
  }
}

// Sample t never waits longer than delay() says, and some sample waits as long.
TEST(Denoise, DelayIsAsLongAsItSays) {
  const Enhancer enhancer(kData / "weights.safetensors", 1);
  Stream stream = enhancer.stream();
  int64_t out = 0, longest = 0;
  for (int64_t in = 1; in <= 500; ++in) {
    const float sample = 0.1f;
    const auto more = static_cast<int64_t>(stream.push({&sample, 1}).size());
    if (more > 0) longest = std::max(longest, in - 1 - out);
    out += more;
  }
  EXPECT_EQ(longest, enhancer.delay());
}

TEST(Denoise, WhatAStreamKeepsDoesNotGrow) {
  const Enhancer enhancer(kData / "weights.safetensors", 1);
  Stream stream = enhancer.stream();
  const std::vector<float> silence(240);
  for (int i = 0; i < 4; ++i) stream.push(silence);
  const int64_t before = stream.state_bytes();
  for (int i = 0; i < 100; ++i) stream.push(silence);
  EXPECT_EQ(stream.state_bytes(), before);
}

TEST(Denoise, PublishedClips) {
  const char* directory = std::getenv("SSM_DENOISE_DATA");
  if (!directory)
    GTEST_SKIP() << "set SSM_DENOISE_DATA to a directory with weights.safetensors, noisy_samples and denoised_samples";
  const Enhancer enhancer(Path(directory) / "weights.safetensors");
  int clips = 0;
  for (const auto& entry : fs::directory_iterator(Path(directory) / "noisy_samples")) {
    const std::vector<float> noisy = read(entry.path());
    const std::vector<float> published = read(Path(directory) / "denoised_samples" / entry.path().filename());
    EXPECT_LT(distance(enhancer.enhance(noisy), published), 1e-5) << entry.path();
    EXPECT_LT(distance(live(enhancer, noisy, {256}), published), 1e-5) << entry.path();
    ++clips;
  }
  EXPECT_EQ(clips, 3);
}

class DenoiseProgram : public testing::Test {
 protected:
  Outcome run(Words words) const {
    words.insert(words.begin(), SSM_PROGRAM);
    return ssm::Process(scratch_.path(), words).wait();
  }
  std::string path(std::string_view name) const { return (scratch_.path() / name).string(); }
  // One line on stderr, nothing else, no file.
  void expect_error(const Words& words, std::string_view part, int code = 1) const {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_TRUE(outcome.err.starts_with("error: ")) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " in " << outcome.err;
    EXPECT_EQ(outcome.out, "");
    for (const auto& entry : fs::directory_iterator(scratch_.path()))
      EXPECT_EQ(entry.path().string().find("out.wav"), std::string::npos) << entry.path();
  }
  std::string sound(std::string_view name, int rate, int channels, const std::vector<float>& samples) const {
    SF_INFO info = {};
    info.samplerate = rate;
    info.channels = channels;
    info.format = SF_FORMAT_WAV | SF_FORMAT_FLOAT;
    const Sound file(sf_open(path(name).c_str(), SFM_WRITE, &info));
    sf_write_float(file.get(), samples.data(), static_cast<sf_count_t>(samples.size()));
    return path(name);
  }

  const ssm::ScratchDirectory scratch_;
  const std::string weights_ = (kData / "weights.safetensors").string(), noisy_ = (kData / "noisy.wav").string();
};

TEST_F(DenoiseProgram, WritesFloatsEitherWay) {
  const Outcome whole = run({"--json", weights_, noisy_, path("whole.wav")});
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(whole.json()["mode"], "whole");
  EXPECT_EQ(whole.json()["samples"], 1999);
  const Outcome in_blocks = run({"--live", "--block", "100", "--json", weights_, noisy_, path("live.wav")});
  ASSERT_EQ(in_blocks.code, 0) << in_blocks.err;
  EXPECT_EQ(in_blocks.json()["delay_samples"], Enhancer(weights_, 1).delay());
  EXPECT_LT(distance(read(path("whole.wav")), golden()), kTolerance);
  EXPECT_LT(distance(read(path("live.wav")), golden()), kTolerance);
  ASSERT_EQ(run({weights_, noisy_, path("again.wav")}).code, 0);
  EXPECT_EQ(ssm::read_text(path("again.wav")), ssm::read_text(path("whole.wav")));
}

TEST_F(DenoiseProgram, ReplacesItsInput) {
  fs::copy_file(noisy_, path("same.wav"));
  ASSERT_EQ(run({"--live", weights_, path("same.wav"), path("same.wav")}).code, 0);
  EXPECT_LT(distance(read(path("same.wav")), golden()), kTolerance);
}

TEST_F(DenoiseProgram, ErrorsAreOneLineAndLeaveNoFile) {
  const std::string out = path("out.wav");
  const std::vector<float> some(64, 0.1f);
  expect_error({weights_, path("none.wav"), out}, "no such file");
  expect_error({weights_, scratch_.path().string(), out}, "not a file");
  expect_error({weights_, weights_, out}, "as audio");
  expect_error({weights_, scratch_.file("empty.wav", "").string(), out}, "as audio");
  expect_error({weights_, sound("rate.wav", 44100, 1, some), out}, "44100 samples a second, expected 16000");
  expect_error({weights_, sound("stereo.wav", 16000, 2, some), out}, "2 channels, expected 1");
  expect_error({weights_, sound("silent.wav", 16000, 1, {}), out}, "has no samples");
  for (const Words& mode : {Words{}, Words{"--live"}}) {
    Words words = mode;
    words.insert(words.end(), {weights_, sound("nan.wav", 16000, 1, {0, NAN, 0}), out});
    expect_error(words, "sample 1 is no finite number");
    words = mode;
    words.insert(words.end(), {weights_, sound("huge.wav", 16000, 1, std::vector<float>(4000, 3e38f)), out});
    expect_error(words, "output is no finite number");
  }
  expect_error({weights_, noisy_, path("nowhere/out.wav")}, "cannot write");
  expect_error({noisy_, noisy_, out}, "noisy.wav");
  expect_error({}, "found 0 file names", 2);
  expect_error({"--live", "--block", "0", weights_, noisy_, out}, "--block is '0'", 2);
  expect_error({"--threads"}, "needs a number", 2);
  expect_error({"--fast", weights_, noisy_, out}, "unknown option '--fast'", 2);
}

TEST_F(DenoiseProgram, WeightsThatDoNotFit) {
  const auto changed = [&](const std::function<void(ssm::TensorMap&)>& change) {
    ssm::TensorMap tensors = ssm::read_safetensors(weights_);
    change(tensors);
    ssm::write_safetensors(path("w.safetensors"), ssm::NamedTensors(tensors.begin(), tensors.end()));
    return path("w.safetensors");
  };
  const std::string out = path("out.wav");
  expect_error({changed([](auto& w) { w.erase("hid_ssms.0.1.B"); }), noisy_, out}, "hid_ssms.0.1.B");
  expect_error({changed([](auto& w) { w["hid_ssms.0.1.B"] = w.at("hid_ssms.0.1.C").clone(); }), noisy_, out},
               "hid_ssms.0.1.B is (5, 20), expected (20, 5)");
  expect_error({changed([](auto& w) {
                  w["last_ssms.0.0.A"] = w.at("last_ssms.0.0.A").clone();
                  w["last_ssms.0.0.A"].template data<float>()[3] = NAN;
                }),
                noisy_, out},
               "last_ssms.0.0.A has an element");
}

}  // namespace
}  // namespace denoise
