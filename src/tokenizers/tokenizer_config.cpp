#include "tokenizers/tokenizer_config.h"

#include "tokenizers/json_fields.h"

namespace ssm {

TokenizerConfig read_tokenizer_config(const Path& tokenizer) {
  const Path path = tokenizer.parent_path() / "tokenizer_config.json";
  TokenizerConfig result;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return result;
  const Json json = parse_tokenizer_json(read_text(path), path.string(), kDeepestTokenizerJson);
  const Component config(json, path.string());
  if (const Json* token = config.find("eos_token")) {  // a string, or an object with the flags of an added token
    const bool plain = token->is_string();
    result.eos_token =
        plain ? token->get<std::string>() : Component(*token, path.string() + ": eos_token").text("content");
  }
  result.add_bos_token = config.flag("add_bos_token", false);
  result.add_eos_token = config.flag("add_eos_token", false);
  return result;
}

}  // namespace ssm
