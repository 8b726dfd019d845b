// Members of a zip archive as spans of the mapped file. Debian's libzip says nothing of where a member lies and always
// copies; weights saved by PyTorch are stored uncompressed so that they can be mapped, and this reader keeps them so.
// It reads the central directory, with zip64; compressed, encrypted and split archives are errors. Checksums are not
// compared: PyTorch can be told to save without computing them, and such files are valid to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/files.h"

namespace ssm {

class ZipArchive {
 public:
  struct Member {
    uint64_t header = 0, bytes = 0;  // where its local header begins; size of its contents
    uint16_t method = 0, flags = 0;
  };
  using Members = std::map<std::string, Member, std::less<>>;

  explicit ZipArchive(std::shared_ptr<MappedFile> file);
  const Members& members() const { return members_; }
  bool contains(std::string_view name) const { return members_.contains(name); }
  std::span<const std::byte> contents(std::string_view name) const;  // Error if missing or not stored plainly

 private:
  std::shared_ptr<MappedFile> file_;
  Members members_;
};

}  // namespace ssm
