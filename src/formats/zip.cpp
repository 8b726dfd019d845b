#include "formats/zip.h"

#include <algorithm>

#include "core/error.h"
#include "formats/untrusted.h"

namespace ssm {
namespace {

// Section numbers below are those of PKWARE's APPNOTE.TXT.
constexpr uint32_t kLocalHeader = 0x04034b50;         // 4.3.7
constexpr uint32_t kCentralHeader = 0x02014b50;       // 4.3.12
constexpr uint32_t kEndOfDirectory64 = 0x06064b50;    // 4.3.14
constexpr uint32_t kLocator64 = 0x07064b50;           // 4.3.15
constexpr uint32_t kEndOfDirectory = 0x06054b50;      // 4.3.16
constexpr size_t kEndBytes = 22, kLocatorBytes = 20;  // of the last two, without the comment
constexpr uint16_t kFull16 = 0xffff;                  // "too large, look in the zip64 record"
constexpr uint32_t kFull32 = 0xffffffff;
constexpr uint16_t kExtra64 = 1, kEncrypted = 1;

struct Directory {
  uint64_t members = 0, offset = 0;
};

// The end record lies before a comment of up to 65535 bytes; the right one is followed by exactly its comment.
size_t find_end(std::span<const std::byte> bytes, const std::string& where) {
  const size_t first = bytes.size() - std::min(bytes.size(), kEndBytes + kFull16);
  for (size_t at = bytes.size() < kEndBytes ? 0 : bytes.size() - kEndBytes + 1; at-- > first;) {
    ByteReader reader(bytes.subspan(at), where);
    if (reader.number<uint32_t>() != kEndOfDirectory) continue;
    reader.seek(kEndBytes - sizeof(uint16_t));
    if (reader.number<uint16_t>() == reader.left()) return at;
  }
  throw Error(where, ": no zip directory at its end; the file is truncated or no zip archive");
}

Directory find_directory(std::span<const std::byte> bytes, const std::string& where) {
  const size_t end = find_end(bytes, where);
  ByteReader reader(bytes, where);
  reader.seek(end + sizeof kEndOfDirectory);
  const auto disk = reader.number<uint16_t>(), first_disk = reader.number<uint16_t>();
  reader.take(sizeof(uint16_t));  // members on this disk
  Directory directory;
  directory.members = reader.number<uint16_t>();
  const auto directory_bytes = reader.number<uint32_t>();
  directory.offset = reader.number<uint32_t>();
  const bool large = directory.members == kFull16 || directory_bytes == kFull32 || directory.offset == kFull32;
  if (large && end >= kLocatorBytes) {
    reader.seek(end - kLocatorBytes);
    if (reader.number<uint32_t>() == kLocator64) {
      reader.take(sizeof(uint32_t));  // disk
      reader.seek(reader.number<uint64_t>());
      require(reader.number<uint32_t>() == kEndOfDirectory64, where, ": its zip64 directory is damaged");
      reader.take(28);  // sizes, versions, disks, members on this disk
      directory.members = reader.number<uint64_t>();
      reader.take(sizeof(uint64_t));  // size of the directory
      directory.offset = reader.number<uint64_t>();
      return directory;
    }
  }
  require(disk == 0 && first_disk == 0, where, " is one part of a split zip archive; expected a whole one");
  return directory;
}

// Sizes and offset that do not fit 32 bits stand in the zip64 extra field, in this order, only those that do not fit.
void read_extra64(std::span<const std::byte> extra, uint64_t& plain, uint64_t& packed, uint64_t& header,
                  const std::string& where) {
  ByteReader fields(extra, where);
  while (fields.left() >= 2 * sizeof(uint16_t)) {
    const auto id = fields.number<uint16_t>();
    ByteReader field(fields.take(fields.number<uint16_t>()), where);
    if (id != kExtra64) continue;
    for (uint64_t* value : {&plain, &packed, &header})
      if (*value == kFull32) *value = field.number<uint64_t>();
    return;
  }
}

}  // namespace

ZipArchive::ZipArchive(std::shared_ptr<MappedFile> file) : file_(std::move(file)) {
  const std::string where = file_->path().string();
  const auto bytes = file_->bytes();
  const Directory directory = find_directory(bytes, where);
  ByteReader reader(bytes, where);
  reader.seek(directory.offset);
  uint64_t unclaimed = bytes.size();
  for (uint64_t i = 0; i < directory.members; ++i) {
    require(reader.number<uint32_t>() == kCentralHeader, where, ": entry ", i, " of its zip directory is damaged");
    Member member;
    reader.take(4);  // versions
    member.flags = reader.number<uint16_t>();
    member.method = reader.number<uint16_t>();
    reader.take(8);  // time, date, checksum
    uint64_t packed = reader.number<uint32_t>();
    member.bytes = reader.number<uint32_t>();
    const auto name_bytes = reader.number<uint16_t>(), extra_bytes = reader.number<uint16_t>(),
               comment_bytes = reader.number<uint16_t>();
    reader.take(8);  // disk, attributes
    member.header = reader.number<uint32_t>();
    std::string name(reader.text(name_bytes));
    read_extra64(reader.take(extra_bytes), member.bytes, packed, member.header, where);
    reader.take(comment_bytes);
    // Members that overlap would let a small file stand for a huge one.
    require(packed <= unclaimed, where, ": its members are larger than the file; it is truncated or damaged");
    unclaimed -= packed;
    require(member.method != 0 || packed == member.bytes, where, ": the sizes of member ", printable(name),
            " disagree");
    const bool fresh = members_.emplace(name, member).second;
    require(fresh, where, ": the member ", printable(name), " appears twice");
  }
}

std::span<const std::byte> ZipArchive::contents(std::string_view name) const {
  const std::string where = file_->path().string();
  const auto found = members_.find(name);
  require(found != members_.end(), where, ": has no member ", printable(name));
  const Member& member = found->second;
  require((member.flags & kEncrypted) == 0, where, ": member ", printable(name), " is encrypted; expected plain");
  require(member.method == 0, where, ": member ", printable(name), " is compressed (method ", member.method,
          "), expected stored; unpack the archive and save it again with torch.save");
  ByteReader reader(file_->bytes(), where);
  reader.seek(member.header);
  require(reader.number<uint32_t>() == kLocalHeader, where, ": member ", printable(name), " is damaged");
  reader.take(22);  // what the directory says as well
  const auto name_bytes = reader.number<uint16_t>(), extra_bytes = reader.number<uint16_t>();
  require(reader.text(name_bytes) == name, where, ": member ", printable(name), " has another name in its header");
  reader.take(extra_bytes);
  return reader.take(member.bytes);
}

}  // namespace ssm
