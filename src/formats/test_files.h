// For the tests of this room: testdata, a scratch directory, archives built by hand, and errors as values.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/files.h"

namespace ssm {

inline Path testdata(std::string_view name) { return Path(__FILE__).parent_path() / "testdata" / name; }

class ScratchDirectory {
 public:
  ScratchDirectory() {
    static int serial = 0;
    path_ = Path(testing::TempDir()) / text("ssm-formats-", getpid(), "-", serial++);
    std::filesystem::create_directories(path_);
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const Path& path() const { return path_; }
  // A new file each time, since tensors may still map an older one; not flushed to the disk, as FileWriter's are.
  Path file(std::string_view name, std::string_view contents) const {
    std::filesystem::remove(path_ / name);
    std::ofstream(path_ / name, std::ios::binary) << contents;
    return path_ / name;
  }

 private:
  Path path_;
};

// That f throws Error, of one line, which contains `part`.
template <class F>
testing::AssertionResult fails_with(std::string_view part, const F& f) {
  try {
    f();
  } catch (const Error& error) {
    const std::string_view what = error.what();
    if (what.find(part) != std::string_view::npos && what.find('\n') == std::string_view::npos)
      return testing::AssertionSuccess();
    return testing::AssertionFailure() << "the error is \"" << what << "\", expected \"" << part << "\" in one line";
  }
  return testing::AssertionFailure() << "no Error, expected \"" << part << "\"";
}

template <class T>
std::string little_endian(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

enum class ZipForm { plain, zip64 };

// An archive of stored members. In the zip64 form every size and offset stands in the 64-bit records.
inline std::string make_zip(const std::vector<std::pair<std::string, std::string>>& members,
                            ZipForm form = ZipForm::plain) {
  const bool large = form == ZipForm::zip64;
  const auto size32 = [&](size_t size) { return little_endian(large ? 0xffffffffu : static_cast<uint32_t>(size)); };
  const auto n16 = [](size_t value) { return little_endian(static_cast<uint16_t>(value)); };
  std::string archive, directory;
  for (const auto& [name, contents] : members) {
    const std::string sizes64 = little_endian<uint64_t>(contents.size()) + little_endian<uint64_t>(contents.size());
    const std::string local_extra = large ? n16(1) + n16(16) + sizes64 : "";
    const std::string extra = large ? n16(1) + n16(24) + sizes64 + little_endian<uint64_t>(archive.size()) : "";
    const std::string shared =
        n16(0) + n16(0) + std::string(8, '\0') + size32(contents.size()) + size32(contents.size()) + n16(name.size());
    directory += "PK\x01\x02" + n16(45) + n16(45) + shared + n16(extra.size()) + n16(0) + std::string(8, '\0') +
                 size32(archive.size()) + name + extra;
    archive += "PK\x03\x04" + n16(45) + shared + n16(local_extra.size()) + name + local_extra + contents;
  }
  const size_t offset = archive.size();
  archive += directory;
  if (large) {
    const size_t record = archive.size();
    archive += "PK\x06\x06" + little_endian<uint64_t>(44) + n16(45) + n16(45) + std::string(8, '\0') +
               little_endian<uint64_t>(members.size()) + little_endian<uint64_t>(members.size()) +
               little_endian<uint64_t>(directory.size()) + little_endian<uint64_t>(offset);
    archive += "PK\x06\x07" + std::string(4, '\0') + little_endian<uint64_t>(record) + little_endian<uint32_t>(1);
  }
  const std::string count = n16(large ? 0xffff : members.size());
  return archive + "PK\x05\x06" + std::string(4, '\0') + count + count + size32(directory.size()) + size32(offset) +
         n16(0);
}

}  // namespace ssm
