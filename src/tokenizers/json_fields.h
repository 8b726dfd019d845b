// Reading the parts of a tokenizer file: each has a "type" and fields; a mistake is an Error that names the place.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace ssm {

using Json = nlohmann::json;

// Parses `text` with at most `deepest` levels. `where` opens error messages.
Json parse_tokenizer_json(std::string_view text, const std::string& where, int deepest);

// One object of the file, at `where` ("tokenizer.json: pre_tokenizer").
class Component {
 public:
  Component(const Json& json, std::string where);
  const std::string& where() const { return where_; }
  std::string type() const { return text("type"); }

  // Fields. Those with a fallback may be absent or null.
  std::string text(const char* key) const;
  std::string text(const char* key, std::string_view fallback) const;
  bool flag(const char* key) const;
  bool flag(const char* key, bool fallback) const;
  size_t count(const char* key) const;
  char32_t character(const char* key) const;  // a string of one character
  const Json& array(const char* key) const;
  const Json& object(const char* key) const;
  const Json* find(const char* key) const;  // null when absent or null

  [[noreturn]] void unsupported(std::string_view what) const;

 private:
  const Json& at(const char* key, const char* expected) const;
  const Json& json_;
  std::string where_;
};

}  // namespace ssm
