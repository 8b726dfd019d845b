// config.json as transformers writes it (model_type mamba, mamba2 and falcon_mamba), from and to the house's config,
// which is the state-spaces one. The judge of defaults and of what counts is transformers 5.23.
#pragma once

#include <string>
#include <string_view>

#include "models/model_config.h"

namespace ssm {

// By content: a transformers config names its model_type, or at least its architectures.
bool is_huggingface(std::string_view json, std::string_view where);

// Throws Error naming the key on what transformers would compute and this program would not. The many keys that
// change no number are skipped.
ModelConfig from_huggingface(std::string_view json, std::string_view where);

// A config that transformers opens; `dtype` is that of most weights. The tokens that begin a text and pad a batch,
// which this program has no use for, come from `original`, the config.json the model was read from, if it was of this
// kind. Throws Error on what transformers has no word for.
std::string to_huggingface(const ModelConfig& config, DType dtype, std::string_view original = "");

// What transformers calls the model: mamba, mamba2, falcon_mamba.
std::string model_type_of(const ModelConfig& config);

// What generation_config.json beside a checkpoint says of the tokens that end a text: where the file exists it decides,
// also by saying nothing.
std::vector<int64_t> end_of_text_in(std::string_view generation_config, std::string_view where);

}  // namespace ssm
