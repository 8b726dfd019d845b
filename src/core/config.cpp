#include "core/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "core/error.h"

namespace ssm {
namespace {

using Json = nlohmann::ordered_json;
template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

// What Python writes for numbers that JSON has not: a bare word, or an object around it.
constexpr std::string_view kFloat = "__float__";
constexpr std::array<std::string_view, 3> kFloatWords = {"-Infinity", "Infinity", "NaN"};

double float_of_word(std::string_view word) {
  if (word == "NaN") return std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  return word.starts_with('-') ? -infinity : infinity;
}

// Bare words outside of strings become the objects.
std::string without_bare_words(std::string_view json) {
  std::string result;
  bool in_string = false;
  for (size_t i = 0; i < json.size();) {
    if (in_string && json[i] == '\\' && i + 1 < json.size()) {
      result += json.substr(i, 2);
      i += 2;
      continue;
    }
    if (json[i] == '"') in_string = !in_string;
    std::string_view found;
    if (!in_string)
      for (const std::string_view word : kFloatWords)
        if (found.empty() && json.substr(i).starts_with(word)) found = word;
    if (found.empty()) {
      result += json[i++];
    } else {
      result += "{\"" + std::string(kFloat) + "\":\"" + std::string(found) + "\"}";
      i += found.size();
    }
  }
  return result;
}

std::optional<double> number_in(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (!value.is_object() || value.size() != 1) return std::nullopt;
  const auto word = value.find(kFloat);
  if (word == value.end() || !word->is_string()) return std::nullopt;
  const auto& text = word->get_ref<const std::string&>();
  if (std::find(kFloatWords.begin(), kFloatWords.end(), text) == kFloatWords.end()) return std::nullopt;
  return float_of_word(text);
}

// JSON has no infinity. As a limit, which is what it is in configs, the largest float is as good.
double writable(double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return std::isinf(value) ? std::copysign(kLargest, value) : value;
}

void read_object(const Fields& fields, const Json& object, const std::string& where, UnknownKeys unknown);

void read_field(const Field& field, const Json& value, const std::string& where, UnknownKeys unknown) {
  const std::string here = where + ": " + field.name;
  const auto expect = [&](bool holds, std::string_view type) {
    require(holds, here, " is ", shown(value), ", expected ", type);
  };
  std::visit(
      Overloaded{[&](bool* to) {
                   expect(value.is_boolean(), "true or false");
                   *to = value.get<bool>();
                 },
                 [&](int64_t* to) {
                   if (!field.word.empty() && value.is_string() && value.get<std::string>() == field.word) {
                     *to = field.word_value;
                     return;
                   }
                   constexpr double kExact = 1LL << 53;  // an integer written as 2.0
                   if (value.is_number_float() && std::abs(value.get<double>()) <= kExact &&
                       std::trunc(value.get<double>()) == value.get<double>()) {
                     *to = static_cast<int64_t>(value.get<double>());
                     return;
                   }
                   const bool fits = value.is_number_integer() &&
                                     !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
                   expect(fits, field.word.empty() ? "an integer" : "an integer or \"" + field.word + "\"");
                   *to = value.get<int64_t>();
                 },
                 [&](double* to) {
                   const std::optional<double> number = number_in(value);
                   expect(number.has_value(), "a number");
                   *to = *number;
                 },
                 [&](std::string* to) {
                   expect(value.is_string(), "a string");
                   *to = value.get<std::string>();
                 },
                 [&](std::vector<int64_t>* to) {
                   if (value.is_number_integer()) {
                     *to = {value.get<int64_t>()};
                     return;
                   }
                   expect(value.is_array() && std::all_of(value.begin(), value.end(),
                                                          [](const Json& one) { return one.is_number_integer(); }),
                          "a list of integers");
                   *to = value.get<std::vector<int64_t>>();
                 },
                 [&](std::vector<double>* to) {
                   expect(value.is_array() && std::all_of(value.begin(), value.end(),
                                                          [](const Json& one) { return number_in(one).has_value(); }),
                          "a list of numbers");
                   to->clear();
                   for (const Json& one : value) to->push_back(*number_in(one));
                 },
                 [&](std::vector<std::string>* to) {
                   expect(value.is_array() &&
                              std::all_of(value.begin(), value.end(), [](const Json& one) { return one.is_string(); }),
                          "a list of strings");
                   *to = value.get<std::vector<std::string>>();
                 },
                 [&](const Field::Nested& nested) {
                   expect(value.is_object(), "an object");
                   read_object(nested(), value, here, unknown);
                 }},
      field.target);
}

void read_object(const Fields& fields, const Json& object, const std::string& where, UnknownKeys unknown) {
  require(object.is_object(), where, ": expected a JSON object, found ", shown(object));
  // The order of the declaration, not of the file: a field may decide what a later nested one holds.
  for (const Field& field : fields) {
    const auto found = object.find(field.name);
    const bool given = found != object.end() && !found->is_null();  // null is Python's None: the default
    require(given || !field.required, where, ": the key ", field.name, " is missing (", field.help, ")");
    if (given) read_field(field, *found, where, unknown);
  }
  if (unknown == UnknownKeys::are_skipped) return;
  const std::vector<std::string> known = names_of(fields);
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string near = nearest(key, known);
    throw Error(where, ": unknown key ", shown(key), near.empty() ? "" : "; did you mean \"" + near + "\"?");
  }
}

Json to_json(const Fields& fields) {
  Json object = Json::object();
  for (const Field& field : fields) {
    std::visit(Overloaded{[&](const Field::Nested& nested) { object[field.name] = to_json(nested()); },
                          [&](int64_t* value) {
                            if (!field.word.empty() && *value == field.word_value)
                              object[field.name] = field.word == "null" ? Json() : Json(field.word);
                            else
                              object[field.name] = *value;
                          },
                          [&](double* value) { object[field.name] = writable(*value); },
                          [&](std::vector<double>* values) {
                            Json list = Json::array();
                            for (const double value : *values) list.push_back(writable(value));
                            object[field.name] = std::move(list);
                          },
                          [&](auto* value) { object[field.name] = *value; }},
               field.target);
  }
  return object;
}

}  // namespace

void read_json(const Fields& fields, std::string_view json, std::string_view where, UnknownKeys unknown) {
  // A config nests two or three deep; a hostile one must not exhaust the stack.
  constexpr int kDeepest = 32;
  bool too_deep = false;
  const auto depth_guard = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kDeepest;
    return !too_deep;
  };
  Json object;
  try {
    object = Json::parse(without_bare_words(json), depth_guard);
  } catch (const Json::exception& problem) {
    std::string what = problem.what();
    if (const size_t cut = what.find("] "); cut != std::string::npos) what = what.substr(cut + 2);
    std::replace_if(
        what.begin(), what.end(), [](unsigned char c) { return c < 0x20 || c > 0x7e; }, '?');
    throw Error(where, " is not JSON: ", what);
  }
  require(!too_deep, where, ": nested more than ", kDeepest, " levels deep");
  read_object(fields, object, std::string(where), unknown);
}

std::string write_json(const Fields& fields, int indent) {
  return to_json(fields).dump(indent > 0 ? indent : -1, ' ', false, Json::error_handler_t::replace);
}

std::string nearest(std::string_view name, const std::vector<std::string>& known) {
  std::string best;
  size_t fewest = name.size() / 2 + 1;  // more edits than half the letters is no likeness
  for (const std::string& candidate : known) {
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t change = diagonal + (name[i - 1] != candidate[j - 1]);
        diagonal = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
      }
    }
    if (row.back() < fewest) {
      fewest = row.back();
      best = candidate;
    }
  }
  return best;
}

std::vector<std::string> names_of(const Fields& fields) {
  std::vector<std::string> names;
  for (const Field& field : fields) names.push_back(field.name);
  return names;
}

}  // namespace ssm
