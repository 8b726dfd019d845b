// `ssm info`: what a model is.
#include <cstdio>
#include <map>
#include <set>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "models/huggingface.h"
#include "models/model.h"

namespace ssm::cli {
namespace {

struct Stored {
  int64_t tensors = 0, bytes = 0;
};

// Tensors of a checkpoint by dtype; memory that two of them share (a tied head) counts once.
std::map<std::string, Stored> stored_by_dtype(const TensorMap& tensors) {
  std::map<std::string, Stored> result;
  std::set<const void*> counted;
  for (const auto& [name, tensor] : tensors) {
    Stored& stored = result[std::string(name_of(tensor.dtype()))];
    ++stored.tensors;
    if (counted.insert(tensor.raw()).second) stored.bytes += tensor.bytes();
  }
  return result;
}

// "huggingface (mamba)": whose config.json it is, and what that calls the model.
std::string kind_of(const ModelFile& file) {
  std::string type = file.config.layer;
  if (file.naming == Naming::huggingface) type = model_type_of(file.config);
  return text(name_of(file.naming), " (", type, ")");
}

std::string grouped(int64_t number) {  // 3,147,776
  std::string digits = std::to_string(number);
  for (size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
  return digits;
}

class Info : public Command {
 public:
  std::string name() const override { return "info"; }
  std::string summary() const override { return "what a model is: config, tensors, parameters, bytes, state"; }
  std::string example() const override { return "ssm info runs/shakespeare --tensors"; }
  std::vector<std::string> positional() const override { return {"model"}; }

  Fields fields() override {
    return {{.name = "model", .target = &model_, .help = "a model's directory or weights file", .required = true},
            {"tensors", &list_tensors_, "list every tensor: name, dtype, shape"}};
  }

  int run(const Invocation& invocation) override {
    const ModelFile file = ModelFile::open(model_);
    ParamStore declared({.dtype = file.dtype, .shapes_only = true});
    const LanguageModel lm(declared, file.config);
    const int64_t fixed = bytes_of(lm.state_spec());
    const Summary summary{
        .parameters = declared.count(), .state_bytes = fixed, .token_bytes = bytes_of(lm.state_spec(), 1) - fixed};
    invocation.common.json ? print_json(file, summary) : print_text(file, summary);
    return 0;
  }

 private:
  struct Summary {
    int64_t parameters, state_bytes, token_bytes;
  };

  void print_text(const ModelFile& file, const Summary& summary) const {
    const std::string tokenizer = tokenizer_of(model_, file.config);
    std::string out = "weights     " + file.weights.string() + "\n";
    out += text("kind        ", kind_of(file), "\n");
    out += "config      " + Json::parse(file.config.json()).dump() + "\n";
    out += "tokenizer   " + (tokenizer.empty() ? "none" : tokenizer) + "\n";
    out += "parameters  " + grouped(summary.parameters) + "\n";
    out += "tensors     " + grouped(static_cast<int64_t>(file.tensors.size())) + "\n";
    for (const auto& [dtype, stored] : stored_by_dtype(file.tensors))
      out += text("  ", dtype, std::string(10 - dtype.size(), ' '), grouped(stored.tensors), " tensors, ",
                  grouped(stored.bytes), " bytes (", byte_count(static_cast<double>(stored.bytes)), ")\n");
    out += text("state       ", grouped(summary.state_bytes), " bytes a sequence (",
                byte_count(static_cast<double>(summary.state_bytes)), "), ",
                summary.token_bytes == 0 ? "whatever its length"
                                         : "and " + grouped(summary.token_bytes) + " more for each of its tokens",
                "\n");
    if (list_tensors_)
      for (const auto& [name, tensor] : file.tensors)
        out += text("  ", one_line(file.published.at(name)), "  ", name_of(tensor.dtype()), " ", tensor.shape(), "\n");
    print(out);
  }

  void print_json(const ModelFile& file, const Summary& summary) const {
    Json dtypes = Json::object();
    int64_t bytes = 0;
    for (const auto& [dtype, stored] : stored_by_dtype(file.tensors)) {
      dtypes[dtype] = {{"tensors", stored.tensors}, {"bytes", stored.bytes}};
      bytes += stored.bytes;
    }
    Json result = {{"weights", file.weights.string()},
                   {"kind", kind_of(file)},
                   {"config", Json::parse(file.config.json())},
                   {"tokenizer", tokenizer_of(model_, file.config)},
                   {"parameters", summary.parameters},
                   {"tensors", file.tensors.size()},
                   {"bytes", bytes},
                   {"dtypes", dtypes},
                   {"state_bytes", summary.state_bytes},
                   {"state_bytes_a_token", summary.token_bytes}};
    if (list_tensors_) {
      result["tensor_list"] = Json::array();
      for (const auto& [name, tensor] : file.tensors)
        result["tensor_list"].push_back(
            {{"name", file.published.at(name)},
             {"dtype", name_of(tensor.dtype())},
             {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())}});
    }
    print(json_line(result));
  }

  std::string model_;
  bool list_tensors_ = false;
};

}  // namespace

std::unique_ptr<Command> make_info() { return std::make_unique<Info>(); }

}  // namespace ssm::cli
