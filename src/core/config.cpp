#include "core/config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

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
                   const bool fits = value.is_number_integer() &&
                                     !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
                   expect(fits, field.word.empty() ? "an integer" : "an integer or \"" + field.word + "\"");
                   *to = value.get<int64_t>();
                 },
                 [&](double* to) {
                   expect(value.is_number(), "a number");
                   *to = value.get<double>();
                 },
                 [&](std::string* to) {
                   expect(value.is_string(), "a string");
                   *to = value.get<std::string>();
                 },
                 [&](std::vector<int64_t>* to) {
                   expect(value.is_array() && std::all_of(value.begin(), value.end(),
                                                          [](const Json& one) { return one.is_number_integer(); }),
                          "a list of integers");
                   *to = value.get<std::vector<int64_t>>();
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
    require(found != object.end() || !field.required, where, ": the key ", field.name, " is missing (", field.help,
            ")");
    if (found != object.end()) read_field(field, *found, where, unknown);
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
                              object[field.name] = field.word;
                            else
                              object[field.name] = *value;
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
    object = Json::parse(json, depth_guard);
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
