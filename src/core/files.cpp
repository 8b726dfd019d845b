#include "core/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iostream>
#include <iterator>

#include "core/error.h"

namespace ssm {
namespace {

std::string reason() { return std::strerror(errno); }

// Written data and renames survive a power cut only once the directory is flushed too.
void flush_directory(const Path& directory) {
  const int descriptor = open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY);
  if (descriptor < 0) return;
  fsync(descriptor);
  close(descriptor);
}

Path temporary_name(const Path& path) {
  Path name = path;
  name += ".tmp-" + std::to_string(getpid());
  return name;
}

}  // namespace

MappedFile::MappedFile(const Path& path) : path_(path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor >= 0, "cannot open ", path.string(), ": ", reason());
  struct stat info {};
  const bool known = fstat(descriptor, &info) == 0;
  const bool regular = known && S_ISREG(info.st_mode);
  void* data = MAP_FAILED;
  if (regular && info.st_size > 0)
    data = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
  const std::string why = reason();
  close(descriptor);
  require(regular, path.string(), known && S_ISDIR(info.st_mode) ? " is a directory" : " is not a regular file",
          "; expected a file");
  require(info.st_size > 0, path.string(), " is empty");
  require(data != MAP_FAILED, "cannot map ", path.string(), ": ", why);
  data_ = static_cast<const std::byte*>(data);
  size_ = static_cast<size_t>(info.st_size);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

std::string read_text(const Path& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor >= 0, "cannot open ", path.string(), ": ", reason());
  std::string contents;
  char buffer[1 << 16];
  ssize_t got;
  while ((got = read(descriptor, buffer, sizeof buffer)) > 0) contents.append(buffer, static_cast<size_t>(got));
  const std::string why = reason();
  close(descriptor);
  require(got == 0, "cannot read ", path.string(), ": ", why);
  return contents;
}

FileWriter::FileWriter(Path path) : path_(std::move(path)), temporary_(temporary_name(path_)) {
  descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  require(descriptor_ >= 0, "cannot write ", path_.string(), ": ", reason());
}

FileWriter::~FileWriter() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

void FileWriter::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t wrote = ::write(descriptor_, from, bytes);
    if (wrote < 0 && errno == EINTR) continue;
    require(wrote > 0, "cannot write ", path_.string(), ": ", reason());
    from += wrote;
    bytes -= static_cast<size_t>(wrote);
  }
}

void FileWriter::write_at(int64_t offset, const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t wrote = pwrite(descriptor_, from, bytes, offset);
    if (wrote < 0 && errno == EINTR) continue;
    require(wrote > 0, "cannot write ", path_.string(), ": ", reason());
    from += wrote;
    offset += wrote;
    bytes -= static_cast<size_t>(wrote);
  }
}

void FileWriter::commit() {
  require(fsync(descriptor_) == 0 || errno == EINVAL, "cannot write ", path_.string(), ": ", reason());
  const int closed = close(descriptor_);
  descriptor_ = -1;
  if (closed != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) {
    const std::string why = reason();
    unlink(temporary_.c_str());
    throw Error("cannot write ", path_.string(), ": ", why);
  }
  flush_directory(path_.parent_path());
}

void write_file(const Path& path, std::string_view contents) {
  FileWriter file(path);
  file.write(contents);
  file.commit();
}

void write_directory(const Path& given, const std::function<void(const Path&)>& fill) {
  namespace fs = std::filesystem;
  const Path path = given.has_filename() ? given : given.parent_path();  // "runs/a/" is "runs/a"
  std::error_code problem;
  require(!fs::exists(path, problem) || (fs::is_directory(path, problem) && fs::is_empty(path, problem)), path.string(),
          " already exists; remove it or choose another name");
  const Path temporary = temporary_name(path);
  fs::remove_all(temporary, problem);
  fs::create_directories(temporary, problem);
  require(!problem, "cannot create directory ", path.string(), ": ", problem.message());
  try {
    fill(temporary);
    flush_directory(temporary);
    fs::rename(temporary, path);  // onto nothing or an empty directory
  } catch (const fs::filesystem_error& failure) {
    fs::remove_all(temporary, problem);
    throw Error("cannot write ", path.string(), ": ", failure.code().message());
  } catch (...) {
    fs::remove_all(temporary, problem);
    throw;
  }
  flush_directory(path.parent_path());
}

}  // namespace ssm
