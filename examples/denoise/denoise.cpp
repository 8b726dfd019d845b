// Takes the noise out of recorded speech with aTENNuate's published weights: a whole recording at once, by
// convolutions, or live, block by block as a sound card would hand it over, by recurrences and in constant memory.
//
//   denoise [--live] [--block N] [--threads N] [--json] WEIGHTS IN.wav OUT.wav
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>

#include "enhancer.h"
#include "wav.h"

namespace {

constexpr const char* kHelp = R"(Takes the noise out of recorded speech.

  denoise [--live] [--block N] [--threads N] [--json] WEIGHTS IN.wav OUT.wav

  WEIGHTS      aTENNuate's, .safetensors or .pt
  IN.wav       speech: 16000 samples a second, one channel, of any type that libsndfile reads
  OUT.wav      32-bit float; appears whole or not at all
  --live       block by block, in constant memory; else the whole recording at once
  --block N    samples that --live is given at a time; default 256, which is 16 ms
  --threads N  default 1
  --json       figures as one JSON object

  denoise --live weights.safetensors noisy.wav clean.wav
)";

constexpr int64_t kLargestBlock = 1 << 20;  // a minute; longer ones are whole recordings, with memory to match

struct Usage : ssm::Error {
  using ssm::Error::Error;
};

struct Options {
  bool live = false, json = false, help = false;
  int64_t block = 256, threads = 1;
  std::vector<std::string> paths;
};

int64_t number(std::string_view flag, std::string_view word, int64_t most) {
  int64_t value = 0;
  const auto [end, problem] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (problem != std::errc() || end != word.data() + word.size() || value < 1 || value > most)
    throw Usage(flag, " is '", word, "', expected a whole number from 1 to ", most);
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  const std::vector<std::string> words(argv + 1, argv + argc);
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 == words.size()) throw Usage(word, " needs a number after it");
      return words[++i];
    };
    if (word == "--help") {
      options.help = true;
    } else if (word == "--live") {
      options.live = true;
    } else if (word == "--json") {
      options.json = true;
    } else if (word == "--block") {
      options.block = number("--block", value(), kLargestBlock);
    } else if (word == "--threads") {
      options.threads = number("--threads", value(), 1024);
    } else if (word.starts_with("--")) {
      throw Usage("unknown option '", word, "', expected --live, --block, --threads, --json or --help");
    } else {
      options.paths.push_back(word);
    }
  }
  if (!options.help && options.paths.size() != 3)
    throw Usage("found ", options.paths.size(), " file names, expected 3: WEIGHTS IN.wav OUT.wav; see denoise --help");
  return options;
}

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Figures {
  int64_t samples = 0;
  double seconds = 0;        // in the enhancer
  double slowest_block = 0;  // live
  int64_t state_bytes = 0;   // live
};

Figures run_whole(const denoise::Enhancer& enhancer, denoise::WavReader& in, denoise::WavWriter& out) {
  try {
    std::vector<float> recording(static_cast<size_t>(in.samples()));
    in.read(recording);
    const auto start = Clock::now();
    const std::vector<float> clean = enhancer.enhance(recording);
    const Figures figures = {.samples = in.samples(), .seconds = seconds_since(start)};
    out.write(clean);
    return figures;
  } catch (const std::bad_alloc&) {
    throw ssm::Error("a recording of ", in.samples(), " samples does not fit into memory at once; use --live");
  }
}

Figures run_live(const denoise::Enhancer& enhancer, int64_t block, denoise::WavReader& in, denoise::WavWriter& out) {
  Figures figures = {.samples = in.samples()};
  denoise::Stream stream = enhancer.stream();
  std::vector<float> samples(static_cast<size_t>(block));
  const auto timed = [&](const auto& call) {
    const auto start = Clock::now();
    const std::vector<float> clean = call();
    const double seconds = seconds_since(start);
    figures.seconds += seconds;
    figures.slowest_block = std::max(figures.slowest_block, seconds);
    figures.state_bytes = std::max(figures.state_bytes, stream.state_bytes());
    out.write(clean);
  };
  while (const size_t got = in.read(samples)) timed([&] { return stream.push(std::span(samples).first(got)); });
  timed([&] { return stream.finish(); });
  return figures;
}

void report(const Options& options, const denoise::Enhancer& enhancer, const Figures& figures) {
  const double audio = static_cast<double>(figures.samples) / denoise::kSampleRate;
  const auto delay = static_cast<long long>(enhancer.delay());
  if (options.json) {
    std::printf("{\"mode\": \"%s\", \"samples\": %lld, \"audio_seconds\": %.6g, \"seconds\": %.6g, ",
                options.live ? "live" : "whole", static_cast<long long>(figures.samples), audio, figures.seconds);
    std::printf("\"real_time_factor\": %.6g, \"threads\": %lld", figures.seconds / audio,
                static_cast<long long>(options.threads));
    if (options.live)
      std::printf(", \"block\": %lld, \"delay_samples\": %lld, \"state_bytes\": %lld, \"slowest_block_seconds\": %.6g",
                  static_cast<long long>(options.block), delay, static_cast<long long>(figures.state_bytes),
                  figures.slowest_block);
    std::printf("}\n");
    return;
  }
  std::printf("%.2f s of audio in %.2f s: real-time factor %.4f\n", audio, figures.seconds, figures.seconds / audio);
  if (options.live)
    std::printf("blocks of %lld samples, the slowest %.2f ms; delay %lld samples (%.1f ms), state %lld bytes\n",
                static_cast<long long>(options.block), 1e3 * figures.slowest_block, delay,
                1e3 * static_cast<double>(delay) / denoise::kSampleRate, static_cast<long long>(figures.state_bytes));
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  if (options.help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  denoise::WavReader in(options.paths[1]);
  const denoise::Enhancer enhancer(options.paths[0], static_cast<int>(options.threads));
  denoise::WavWriter out(options.paths[2]);
  const Figures figures = options.live ? run_live(enhancer, options.block, in, out) : run_whole(enhancer, in, out);
  out.commit();
  report(options, enhancer, figures);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Usage& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
