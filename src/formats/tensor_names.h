// The names of a model's tensors as the two homes of checkpoints spell them. Inside the house a parameter has its
// state-spaces name; this is the one table of the differences, in both directions.
#pragma once

#include <string>
#include <string_view>

namespace ssm {

enum class Naming { state_spaces, huggingface };

std::string_view name_of(Naming naming);  // "state-spaces", "huggingface"

// The state-spaces name of a tensor whatever its spelling: the plural of transformers, names of a bare backbone
// (saved without the head), prefixes that wrappers put in front. Names it does not know stay as they are.
std::string house_name(std::string_view published);
// The other way: how a checkpoint of that kind calls it.
std::string published_name(std::string_view house, Naming naming);

}  // namespace ssm
