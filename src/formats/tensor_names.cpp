#include "formats/tensor_names.h"

#include <array>

namespace ssm {
namespace {

// What frameworks put before every name: Lightning and Mistral's files, DistributedDataParallel.
constexpr std::array<std::string_view, 2> kWrappers = {"model.", "module."};
constexpr std::string_view kBackbone = "backbone.";
// What is left of the names of a backbone that was saved on its own.
constexpr std::array<std::string_view, 4> kInBackbone = {"embedding.", "embeddings.", "layers.", "norm_f."};
constexpr std::string_view kOurEmbedding = "backbone.embedding.", kTheirEmbedding = "backbone.embeddings.";

}  // namespace

std::string_view name_of(Naming naming) { return naming == Naming::huggingface ? "huggingface" : "state-spaces"; }

std::string house_name(std::string_view published) {
  for (bool stripped = true; stripped;) {
    stripped = false;
    for (const std::string_view wrapper : kWrappers)
      if (published.starts_with(wrapper)) {
        published.remove_prefix(wrapper.size());
        stripped = true;
      }
  }
  std::string name(published);
  for (const std::string_view start : kInBackbone)
    if (published.starts_with(start)) name = std::string(kBackbone) + name;
  if (name.starts_with(kTheirEmbedding)) name.replace(0, kTheirEmbedding.size(), kOurEmbedding);
  return name;
}

std::string published_name(std::string_view house, Naming naming) {
  std::string name(house);
  if (naming == Naming::huggingface && name.starts_with(kOurEmbedding))
    name.replace(0, kOurEmbedding.size(), kTheirEmbedding);
  return name;
}

}  // namespace ssm
