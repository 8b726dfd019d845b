#include "tokenizers/post_processor.h"

#include "core/error.h"

namespace ssm {
namespace {

int64_t id_of(const Json& id, const std::string& where) {
  require(id.is_number_unsigned() && id.get<uint64_t>() <= INT32_MAX, where, " is ",
          id.is_number() ? id.dump() : id.type_name(), ", expected an id");
  return id.get<int64_t>();
}

// ["</s>", 2]
int64_t named_id(const Component& part, const char* key) {
  const Json& pair = part.array(key);
  require(pair.size() == 2, part.where(), ".", key, " has ", pair.size(), " elements, expected a token and its id");
  return id_of(pair[1], text(part.where(), ".", key, "[1]"));
}

std::vector<TemplatePart> read_single(const Component& part) {
  std::vector<TemplatePart> result;
  const Json empty = Json::object();
  const Component tokens(part.find("special_tokens") ? part.object("special_tokens") : empty,
                         part.where() + ".special_tokens");
  for (const Json& piece : part.array("single")) {
    const std::string place = text(part.where(), ".single[", result.size(), "]");
    const Component item(piece, place);
    if (item.find("Sequence")) {
      const std::string name = Component(item.object("Sequence"), place + ".Sequence").text("id");
      if (name != "A") item.unsupported("the sequence " + name + " in the template of a single text");
      result.push_back({.text = true, .ids = {}});
      continue;
    }
    const std::string name = Component(item.object("SpecialToken"), place + ".SpecialToken").text("id");
    const Component token(tokens.object(name.c_str()), tokens.where() + "." + name);
    TemplatePart special{.text = false, .ids = {}};
    for (const Json& id : token.array("ids")) special.ids.push_back(id_of(id, token.where() + ".ids"));
    result.push_back(std::move(special));
  }
  return result;
}

}  // namespace

std::vector<TemplatePart> read_template(const Json& json, const std::string& where) {
  const TemplatePart whole{.text = true, .ids = {}};
  if (json.is_null()) return {whole};
  const Component part(json, where);
  const std::string type = part.type();
  if (type == "ByteLevel") return {whole};  // it moves offsets only
  if (type == "TemplateProcessing") return read_single(part);
  if (type == "RobertaProcessing" || type == "BertProcessing")
    return {{.text = false, .ids = {named_id(part, "cls")}}, whole, {.text = false, .ids = {named_id(part, "sep")}}};
  if (type == "Sequence") {
    std::vector<TemplatePart> result{whole};
    size_t index = 0, adding = 0;
    for (const Json& inner : part.array("processors")) {
      const std::string place = text(where, ".processors[", index++, "]");
      require(!inner.is_null(), place, " is null, expected a post-processor");
      std::vector<TemplatePart> parts = read_template(inner, place);
      if (parts.size() == 1 && parts[0].text) continue;
      if (++adding > 1) part.unsupported("more than one post-processor that adds tokens");
      result = std::move(parts);
    }
    return result;
  }
  part.unsupported("the post-processor " + type);
}

}  // namespace ssm
