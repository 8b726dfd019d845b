#include "formats/tensor_names.h"

#include <gtest/gtest.h>

namespace ssm {
namespace {

TEST(TensorNames, EverySpellingIsOneName) {
  for (const char* name : {"backbone.embedding.weight", "backbone.embeddings.weight", "model.backbone.embedding.weight",
                           "module.model.backbone.embeddings.weight", "embeddings.weight", "embedding.weight"})
    EXPECT_EQ(house_name(name), "backbone.embedding.weight") << name;
  EXPECT_EQ(house_name("layers.3.mixer.D"), "backbone.layers.3.mixer.D");
  EXPECT_EQ(house_name("model.layers.3.mixer.D"), "backbone.layers.3.mixer.D");
  EXPECT_EQ(house_name("norm_f.weight"), "backbone.norm_f.weight");
  EXPECT_EQ(house_name("model.lm_head.weight"), "lm_head.weight");
  for (const char* name : {"", "model.", "transformer.h.0.attn.weight", "backbone.embedding"})
    EXPECT_EQ(house_name(name), std::string(name) == "model." ? "" : name);
}

TEST(TensorNames, PublishedNamesComeBack) {
  for (const char* name : {"backbone.embedding.weight", "backbone.layers.0.norm.weight", "lm_head.weight"})
    for (const Naming naming : {Naming::state_spaces, Naming::huggingface})
      EXPECT_EQ(house_name(published_name(name, naming)), name);
  EXPECT_EQ(published_name("backbone.embedding.weight", Naming::huggingface), "backbone.embeddings.weight");
}

}  // namespace
}  // namespace ssm
