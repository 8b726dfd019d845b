// The choice among model types, and the one that is a page long: WordLevel.
#include "tokenizers/word_model.h"

#include "core/error.h"

namespace ssm {
namespace {

// A piece is a word of the vocabulary or the unknown one.
class WordLevel : public WordModel {
 public:
  explicit WordLevel(const Component& part)
      : vocabulary_(vocabulary_entries(part), part.where() + ".vocab"), where_(part.where()) {
    unknown_name_ = part.text("unk_token", "");
    unknown_ = vocabulary_.id_of(unknown_name_);
  }
  std::unique_ptr<Scratch> make_scratch() const override { return std::make_unique<Scratch>(); }
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  void encode(std::string_view word, Scratch&, std::vector<int64_t>& ids) const override {
    if (word.empty()) return;
    const auto id = vocabulary_.id_of(word);
    require(id || unknown_, where_, ": the text has a word that is not in the vocabulary, and the unk_token \"",
            unknown_name_, "\" is not there either");
    ids.push_back(id ? *id : *unknown_);
  }

 private:
  Vocabulary vocabulary_;
  std::string where_, unknown_name_;
  std::optional<int64_t> unknown_;
};

}  // namespace

std::vector<std::pair<std::string, int64_t>> vocabulary_entries(const Component& part) {
  std::vector<std::pair<std::string, int64_t>> entries;
  const Json& vocabulary = part.object("vocab");
  entries.reserve(vocabulary.size());
  for (auto entry = vocabulary.begin(); entry != vocabulary.end(); ++entry) {
    const Json& id = *entry;
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX)  // the message is made only when it is needed
      throw Error(part.where(), ".vocab: the id of \"", entry.key(), "\" is ",
                  id.is_number() ? id.dump() : id.type_name(), ", expected a whole number up to ", INT32_MAX);
    entries.emplace_back(entry.key(), id.get<int64_t>());
  }
  return entries;
}

std::unique_ptr<WordModel> make_word_model(const Json& json, const std::string& where) {
  const Component part(json, where);
  // The oldest files name no type.
  const std::string type = part.text("type", part.find("merges") ? "BPE" : "");
  if (type == "BPE") return make_bpe(part);
  if (type == "WordLevel") return std::make_unique<WordLevel>(part);
  part.unsupported("the model type \"" + type + "\" (BPE and WordLevel are)");
}

}  // namespace ssm
