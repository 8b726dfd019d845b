// WAV files through libsndfile; the output goes through the library's FileWriter.
#include "wav.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/error.h"

namespace denoise {

WavReader::WavReader(const ssm::Path& path) : path_(path) {
  // Looked at first: libsndfile says "system error" of whatever is no file, and waits for a pipe.
  ssm::require(std::filesystem::exists(path), "cannot read ", path.string(), ": no such file");
  ssm::require(std::filesystem::is_regular_file(path), "cannot read ", path.string(), ": not a file");
  SF_INFO info = {};
  sound_.reset(sf_open(path.c_str(), SFM_READ, &info));
  if (!sound_) {
    std::string why = sf_strerror(nullptr);
    for (char& c : why)
      if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    throw ssm::Error("cannot read ", path.string(), " as audio: ", why.substr(0, why.find_last_not_of(". ") + 1));
  }
  ssm::require(info.samplerate == kSampleRate, path.string(), " has ", info.samplerate, " samples a second, expected ",
               kSampleRate, ": resample it first (sox IN.wav -r 16000 OUT.wav)");
  ssm::require(info.channels == 1, path.string(), " has ", info.channels,
               " channels, expected 1: mix it down first (sox IN.wav -c 1 OUT.wav)");
  ssm::require(info.frames > 0, path.string(), " has no samples");
  ssm::require(info.frames <= WavWriter::kMostSamples, path.string(), " has ", info.frames,
               " samples; a WAV file of floats holds ", WavWriter::kMostSamples, ": cut it into pieces");
  samples_ = info.frames;
}

size_t WavReader::read(std::span<float> to) {
  const auto wanted = std::min<int64_t>(static_cast<int64_t>(to.size()), samples_ - read_);
  const int64_t got = sf_readf_float(sound_.get(), to.data(), wanted);
  ssm::require(got == wanted, path_.string(), " ends after ", read_ + got, " samples, its header says ", samples_);
  for (int64_t i = 0; i < got; ++i)
    ssm::require(std::isfinite(to[static_cast<size_t>(i)]), path_.string(), ": sample ", read_ + i,
                 " is no finite number");
  read_ += got;
  return static_cast<size_t>(got);
}

WavWriter::WavWriter(const ssm::Path& path) : path_(path), file_(path) {
  SF_VIRTUAL_IO io = {.get_filelen = length, .seek = seek, .read = read_back, .write = put, .tell = tell};
  SF_INFO info = {};
  info.samplerate = kSampleRate;
  info.channels = 1;
  info.format = SF_FORMAT_WAV | SF_FORMAT_FLOAT;
  sound_.reset(sf_open_virtual(&io, SFM_WRITE, &info, this));
  check(sound_ != nullptr);
  // Its PEAK chunk holds the time of day: the same samples are to be the same bytes.
  sf_command(sound_.get(), SFC_SET_ADD_PEAK_CHUNK, nullptr, SF_FALSE);
}

void WavWriter::write(std::span<const float> samples) {
  const auto count = static_cast<sf_count_t>(samples.size());
  check(sf_writef_float(sound_.get(), samples.data(), count) == count);
}

void WavWriter::commit() {
  const int failed = sf_close(sound_.release());  // writes the sizes into the header
  check(failed == 0);
  file_.commit();
}

void WavWriter::check(bool done) const {
  if (problem_) std::rethrow_exception(problem_);
  ssm::require(done, "cannot write ", path_.string(), ": ", sf_strerror(sound_.get()));
}

sf_count_t WavWriter::length(void* self) { return static_cast<WavWriter*>(self)->length_; }

sf_count_t WavWriter::seek(sf_count_t offset, int whence, void* self) {
  auto& to = *static_cast<WavWriter*>(self);
  const int64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? to.position_ : to.length_;
  return to.position_ = from + offset;
}

sf_count_t WavWriter::read_back(void* /*to*/, sf_count_t /*bytes*/, void* /*self*/) { return 0; }

sf_count_t WavWriter::put(const void* from, sf_count_t bytes, void* self) {
  auto& to = *static_cast<WavWriter*>(self);
  try {
    const auto* data = static_cast<const char*>(from);
    const int64_t over = std::clamp<int64_t>(to.length_ - to.position_, 0, bytes);
    if (over > 0) to.file_.write_at(to.position_, data, static_cast<size_t>(over));
    if (over < bytes) to.file_.write(data + over, static_cast<size_t>(bytes - over));
    to.position_ += bytes;
    to.length_ = std::max(to.length_, to.position_);
    return bytes;
  } catch (...) {
    to.problem_ = std::current_exception();
    return 0;
  }
}

sf_count_t WavWriter::tell(void* self) { return static_cast<WavWriter*>(self)->position_; }

}  // namespace denoise
