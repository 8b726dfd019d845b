// Recordings as files, through libsndfile: one channel at the enhancer's rate in, 32-bit float WAV out. Nothing is
// resampled or mixed down: another rate or more channels are errors. The file written appears whole or not at all.
#pragma once

#include <sndfile.h>

#include <exception>
#include <memory>
#include <span>

#include "core/files.h"

namespace denoise {

inline constexpr int kSampleRate = 16000;

struct CloseSound {
  void operator()(SNDFILE* file) const { sf_close(file); }
};
using Sound = std::unique_ptr<SNDFILE, CloseSound>;

class WavReader {
 public:
  explicit WavReader(const ssm::Path& path);
  int64_t samples() const { return samples_; }
  // The next samples, integers scaled to [-1, 1); how many there were, fewer than asked for at the end alone.
  size_t read(std::span<float> to);

 private:
  ssm::Path path_;
  int64_t samples_ = 0, read_ = 0;
  Sound sound_;
};

class WavWriter {
 public:
  explicit WavWriter(const ssm::Path& path);
  WavWriter(const WavWriter&) = delete;
  WavWriter& operator=(const WavWriter&) = delete;
  void write(std::span<const float> samples);
  void commit();

  // Of a float WAV, whose sizes are 32 bits.
  static constexpr int64_t kMostSamples = (int64_t{1} << 30) - 64;

 private:
  // What libsndfile asks of a file.
  static sf_count_t length(void* self);
  static sf_count_t seek(sf_count_t offset, int whence, void* self);
  static sf_count_t read_back(void* to, sf_count_t bytes, void* self);
  static sf_count_t put(const void* from, sf_count_t bytes, void* self);
  static sf_count_t tell(void* self);
  void check(bool done) const;

  ssm::Path path_;
  ssm::FileWriter file_;
  int64_t position_ = 0, length_ = 0;
  std::exception_ptr problem_;  // of file_: no exception may pass through libsndfile
  Sound sound_;                 // last: closed, it still writes
};

}  // namespace denoise
