// `ssm info`: what a model is.
#include <cstdio>
#include <map>
#include <set>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "formats/checkpoint.h"

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
    const Checkpoint checkpoint = open_checkpoint(resolve_model(model_));
    // Declaring the parameters checks every name and shape, and values stay where they are: in the mapped file.
    const auto model = Model::open(model_, {.device = Device::cpu(), .dtype = stored_dtype(checkpoint)});
    invocation.common.json ? print_json(checkpoint, *model) : print_text(checkpoint, *model);
    return 0;
  }

 private:
  static std::string shape_of(const Tensor& tensor) { return text(tensor.shape()); }

  void print_text(const Checkpoint& checkpoint, const Model& model) const {
    const std::string tokenizer = tokenizer_of(model_, model.config());
    const int64_t state = bytes_of(model.lm().state_spec());
    std::string out = "weights     " + checkpoint.weights.string() + "\n";
    const Json config = Json::parse(model.config().json());
    out += "config      " + config.dump() + "\n";
    out += "tokenizer   " + (tokenizer.empty() ? "none" : tokenizer) + "\n";
    out += "parameters  " + grouped(model.params().count()) + "\n";
    out += "tensors     " + grouped(static_cast<int64_t>(checkpoint.tensors.size())) + "\n";
    for (const auto& [dtype, stored] : stored_by_dtype(checkpoint.tensors))
      out += text("  ", dtype, std::string(10 - dtype.size(), ' '), grouped(stored.tensors), " tensors, ",
                  grouped(stored.bytes), " bytes (", byte_count(static_cast<double>(stored.bytes)), ")\n");
    out += text("state       ", grouped(state), " bytes a sequence (", byte_count(static_cast<double>(state)),
                "), whatever its length\n");
    if (list_tensors_)
      for (const auto& [name, tensor] : checkpoint.tensors)
        out += text("  ", one_line(name), "  ", name_of(tensor.dtype()), " ", tensor.shape(), "\n");
    print(out);
  }

  void print_json(const Checkpoint& checkpoint, const Model& model) const {
    Json dtypes = Json::object();
    int64_t bytes = 0;
    for (const auto& [dtype, stored] : stored_by_dtype(checkpoint.tensors)) {
      dtypes[dtype] = {{"tensors", stored.tensors}, {"bytes", stored.bytes}};
      bytes += stored.bytes;
    }
    Json result = {{"weights", checkpoint.weights.string()},
                   {"config", Json::parse(model.config().json())},
                   {"tokenizer", tokenizer_of(model_, model.config())},
                   {"parameters", model.params().count()},
                   {"tensors", checkpoint.tensors.size()},
                   {"bytes", bytes},
                   {"dtypes", dtypes},
                   {"state_bytes", bytes_of(model.lm().state_spec())}};
    if (list_tensors_) {
      result["tensor_list"] = Json::array();
      for (const auto& [name, tensor] : checkpoint.tensors)
        result["tensor_list"].push_back(
            {{"name", name},
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
