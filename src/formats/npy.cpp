#include "formats/npy.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "formats/untrusted.h"

namespace ssm {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct Header {
  std::optional<std::string> descr;  // "<f4"
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
};

// The dict literal, {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, keys in any order.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  Header parse() {
    Header header;
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr" && !header.descr) {
        check(!peek('['), "describes records, expected plain numbers");
        header.descr = quoted();
      } else if (key == "fortran_order" && !header.fortran_order) {
        header.fortran_order = boolean();
      } else if (key == "shape" && !header.shape) {
        header.shape = tuple();
      } else {
        check(false, "has an unknown or repeated key");
      }
      if (!accept(',')) check(peek('}'), "has no comma after a value");
    }
    skip_space();
    check(text_.empty(), "goes on after its end");
    check(header.descr && header.fortran_order && header.shape, "lacks descr, fortran_order or shape");
    return header;
  }

 private:
  void check(bool holds, std::string_view what) const { require(holds, where_, ": its .npy header ", what); }
  void skip_space() { text_.remove_prefix(std::min(text_.find_first_not_of(" \t\r\n"), text_.size())); }
  bool peek(char sign) {
    skip_space();
    return text_.starts_with(sign);
  }
  bool accept(char sign) {
    const bool there = peek(sign);
    if (there) text_.remove_prefix(1);
    return there;
  }
  void expect(char sign) { check(accept(sign), "is no Python dict; the file is damaged"); }

  std::string quoted() {
    const char quote = peek('"') ? '"' : '\'';
    expect(quote);
    const size_t end = text_.find(quote);
    check(end != std::string_view::npos, "has a string without an end");
    std::string result(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return result;
  }

  bool boolean() {
    skip_space();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}})
      if (text_.starts_with(word)) {
        text_.remove_prefix(word.size());
        return value;
      }
    check(false, "has a fortran_order that is neither True nor False");
    return false;
  }

  std::vector<int64_t> tuple() {
    std::vector<int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      skip_space();
      int64_t size = 0;
      size_t digits = 0;
      bool fits = true;
      for (; digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9'; ++digits)
        fits = fits && !__builtin_mul_overflow(size, 10, &size) &&
               !__builtin_add_overflow(size, text_[digits] - '0', &size);
      check(digits > 0 && fits, "has a size that is no integer from 0");
      text_.remove_prefix(digits);
      sizes.push_back(size);
      if (!accept(',')) check(peek(')'), "has no comma between sizes");
    }
    return sizes;
  }

  std::string_view text_;
  const std::string& where_;
};

Header read_header(ByteReader& reader, const std::string& where) {
  require(reader.left() >= kMagic.size() && reader.text(kMagic.size()) == kMagic, where,
          " is no .npy file; expected one made by numpy.save");
  const int major = reader.number<uint8_t>(), minor = reader.number<uint8_t>();
  require(1 <= major && major <= 3 && minor == 0, where, ": .npy format version ", major, ".", minor,
          ", expected 1.0, 2.0 or 3.0");
  const uint64_t bytes = major == 1 ? reader.number<uint16_t>() : reader.number<uint32_t>();
  return HeaderParser(reader.text(bytes), where).parse();
}

// The elements in file order, as a flat tensor of `To`.
template <class From, class To>
Tensor widened(std::span<const std::byte> bytes, const std::string& where) {
  const auto count = static_cast<int64_t>(bytes.size() / sizeof(From));
  Tensor result = Tensor::empty({count}, DTypeOf<To>::value);
  To* to = result.data<To>();
  if constexpr (std::is_same_v<From, To>) {
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
  } else {
    for (int64_t i = 0; i < count; ++i) {
      From value;
      std::memcpy(&value, bytes.data() + i * static_cast<int64_t>(sizeof value), sizeof value);
      if constexpr (std::is_same_v<From, uint64_t>)
        require(value <= uint64_t{INT64_MAX}, where, ": element ", i, " is ", value, ", expected at most ", INT64_MAX);
      to[i] = static_cast<To>(value);
    }
  }
  return result;
}

struct ElementType {
  std::string_view name;  // without the byte order
  size_t width;
  Tensor (*read)(std::span<const std::byte>, const std::string&);
};
constexpr std::array<ElementType, 11> kElementTypes = {{{"f8", 8, widened<double, double>},
                                                        {"f4", 4, widened<float, float>},
                                                        {"f2", 2, widened<F16, F16>},
                                                        {"i8", 8, widened<int64_t, int64_t>},
                                                        {"i4", 4, widened<int32_t, int64_t>},
                                                        {"i2", 2, widened<int16_t, int64_t>},
                                                        {"i1", 1, widened<int8_t, int64_t>},
                                                        {"u8", 8, widened<uint64_t, int64_t>},
                                                        {"u4", 4, widened<uint32_t, int64_t>},
                                                        {"u2", 2, widened<uint16_t, int64_t>},
                                                        {"u1", 1, widened<uint8_t, int64_t>}}};

const ElementType& element_type(const std::string& descr, const std::string& where) {
  require(!descr.starts_with('>'), where, " holds big-endian numbers (", printable(descr),
          "), expected little-endian; convert with array.astype(array.dtype.newbyteorder(\"<\"))");
  const std::string_view name = std::string_view(descr).substr(std::min<size_t>(1, descr.size()));
  const bool ordered = descr.starts_with('<') || descr.starts_with('|') || descr.starts_with('=');
  for (const ElementType& type : kElementTypes)
    if (ordered && type.name == name) return type;
  throw Error(where, " holds elements of type ", printable(descr), ", expected f2, f4, f8 or integers");
}

std::string_view descr_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return "<f8";
    case DType::f32: return "<f4";
    case DType::f16: return "<f2";
    case DType::i64: return "<i8";
    case DType::i32: return "<i4";
    case DType::bf16: break;  // widened by the caller
  }
  return {};
}

}  // namespace

Tensor read_npy(const Path& path) {
  const MappedFile file(path);
  const std::string where = path.string();
  ByteReader reader(file.bytes(), where);
  const Header header = read_header(reader, where);
  const ElementType& type = element_type(*header.descr, where);
  const std::vector<int64_t>& sizes = *header.shape;
  require(sizes.size() <= Shape::kMaxRank, where, " has ", sizes.size(), " dimensions, expected at most ",
          Shape::kMaxRank);
  // As i64, so that widening cannot overflow either.
  const auto bytes = checked_bytes(sizes, DType::i64);
  const Shape shape(sizes);
  require(bytes && static_cast<uint64_t>(*bytes) / 8 * type.width == reader.left(), where, " has ", reader.left(),
          " bytes of elements, not what ", printable(*header.descr), " ", shape,
          " needs; the file is truncated or damaged");
  const Tensor flat = type.read(reader.take(reader.left()), where);
  if (!*header.fortran_order) return flat.reshape(shape);
  Shape strides = shape;  // the first dimension varies fastest
  int64_t step = 1;
  for (int i = 0; i < shape.rank(); ++i) {
    strides[i] = step;
    step *= shape[i];
  }
  return Tensor::borrow(flat.raw(), shape, flat.dtype(), nullptr, &strides).clone();
}

void write_npy(const Path& path, const Tensor& tensor) {
  require(static_cast<bool>(tensor), "cannot write ", path.string(), ": there is no array");
  const Tensor known = tensor.dtype() == DType::bf16 ? tensor.to(DType::f32) : tensor;
  const Tensor dense = known.contiguous() ? known : known.clone();
  std::string shape;
  for (const int64_t size : dense.shape()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
  if (dense.rank() == 1) shape += ",";  // (3) would be a number
  std::string header =
      text("{'descr': '", descr_of(dense.dtype()), "', 'fortran_order': False, 'shape': (", shape, "), }");
  // Elements begin on a 64-byte boundary; the header ends in a newline.
  constexpr size_t kBoundary = 64, kPrefix = 10;
  header.resize((kPrefix + header.size() + 1 + kBoundary - 1) / kBoundary * kBoundary - kPrefix - 1, ' ');
  header += '\n';
  const auto header_bytes = static_cast<uint16_t>(header.size());
  FileWriter file(path);
  file.write(kMagic);
  file.write(std::string_view("\x01\x00", 2));
  file.write(&header_bytes, sizeof header_bytes);
  file.write(header);
  file.write(dense.raw(), static_cast<size_t>(dense.bytes()));
  file.commit();
}

Tensor read_ids(const Path& path, int64_t vocab) {
  const Tensor ids = read_npy(path);
  const std::string where = path.string();
  require(ids.dtype() == DType::i64, where, " holds ", name_of(ids.dtype()), ", expected integers (token ids)");
  require(ids.rank() == 1 || ids.rank() == 2, where, " has shape ", ids.shape(), ", expected (t) or (s, t)");
  const auto all = ids.span<int64_t>();
  for (int64_t i = 0; i < ids.count(); ++i) {
    const int64_t id = all[static_cast<size_t>(i)];
    if (0 <= id && id < vocab) continue;
    const int64_t columns = ids.size(-1);
    throw Error(where, ": the id at ",
                ids.rank() == 1 ? text("(", i, ")") : text("(", i / columns, ", ", i % columns, ")"), " is ", id,
                ", expected 0 to ", vocab - 1, "; were these ids made with this model's tokenizer?");
  }
  return ids;
}

}  // namespace ssm
