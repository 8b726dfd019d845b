// A config is declared once, as a list of fields over a struct's members. The list gives JSON in both directions,
// command-line flags, help and printing; an unknown key is an error that names the nearest known one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace ssm {

struct Field;
using Fields = std::vector<Field>;

struct Field {
  using Nested = std::function<Fields()>;  // an object of further fields
  using Target = std::variant<bool*, int64_t*, double*, std::string*, std::vector<int64_t>*, std::vector<double>*,
                              std::vector<std::string>*, Nested>;
  std::string name;  // the JSON key; the flag is --name with dashes for underscores
  Target target;
  std::string help;
  bool required = false;
  // JSON may also give a string here (dt_rank: "auto"), which stands for this number; the
  // word null is JSON's own. A number that is NaN is written as null, too.
  std::string word;
  int64_t word_value = 0;
};

enum class UnknownKeys { are_errors, are_skipped };

// Sets the fields from a JSON object. `where` opens error messages ("config.json"). Fields the object does not name, or
// names with null, keep their value. Where a number is expected, Python's Infinity, -Infinity and NaN are read too,
// bare or as {"__float__": "Infinity"}; where a list of integers is, one alone too. Throws Error on bad JSON, wrong
// types and, unless told otherwise, unknown keys.
void read_json(const Fields& fields, std::string_view json, std::string_view where,
               UnknownKeys unknown = UnknownKeys::are_errors);
// The object with every field, in order; indent 0 gives one line. Infinity is written as the largest float.
std::string write_json(const Fields& fields, int indent = 2);

// The known name with the fewest edits, or "" when none is near.
std::string nearest(std::string_view name, const std::vector<std::string>& known);
std::vector<std::string> names_of(const Fields& fields);

}  // namespace ssm
