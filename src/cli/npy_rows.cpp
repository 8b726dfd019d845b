#include "cli/npy_rows.h"

#include <string>

namespace ssm::cli {

NpyRows::NpyRows(const Path& path, const Shape& shape) : file_(path), missing_(shape.count()) {
  std::string sizes;
  for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  if (shape.rank() == 1) sizes += ",";  // (3) would be a number
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + sizes + "), }";
  // Elements begin on a 64-byte boundary; the header ends in a newline.
  constexpr size_t kBoundary = 64, kPrefix = 10;
  header.resize((kPrefix + header.size() + 1 + kBoundary - 1) / kBoundary * kBoundary - kPrefix - 1, ' ');
  header += '\n';
  const auto bytes = static_cast<uint16_t>(header.size());
  file_.write(std::string_view("\x93NUMPY\x01\x00", 8));
  file_.write(&bytes, sizeof bytes);
  file_.write(header);
}

void NpyRows::write(const Tensor& rows) {
  DCHECK(rows.contiguous() && rows.count() <= missing_);
  file_.write(rows.data<float>(), static_cast<size_t>(rows.bytes()));
  missing_ -= rows.count();
}

void NpyRows::commit() {
  DCHECK(missing_ == 0);
  file_.commit();
}

}  // namespace ssm::cli
