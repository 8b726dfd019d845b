// `ssm convert`: a model in our home format (config.json and safetensors), in the dtype asked for.
#include <array>
#include <filesystem>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "formats/checkpoint.h"

namespace ssm::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightsFile = ".safetensors";
constexpr std::array<const char*, 3> kTokenizerFiles = {"tokenizer.json", "tokenizer_config.json",
                                                        "special_tokens_map.json"};

class Convert : public Command {
 public:
  std::string name() const override { return "convert"; }
  std::string summary() const override { return "a model in another format or dtype"; }
  std::string example() const override { return "ssm convert runs/shakespeare --out shakespeare-bf16 --dtype bf16"; }
  std::vector<std::string> positional() const override { return {"model"}; }

  Fields fields() override {
    return {{.name = "model", .target = &model_, .help = "a model's directory or weights file", .required = true},
            {.name = "out",
             .target = &out_,
             .help = "a new directory, or a file F.safetensors with config.json beside it",
             .required = true}};
  }

  int run(const Invocation& invocation) override {
    const DType dtype =
        invocation.has("dtype") ? invocation.common.dtype_kind() : stored_dtype(open_checkpoint(resolve_model(model_)));
    const auto model = Model::open(model_, {.device = Device::cpu(), .dtype = dtype});
    if (Path(out_).extension() == kWeightsFile)
      write_beside(*model);
    else
      write_new_directory(*model);
    if (invocation.common.json)
      print(json_line({{"out", out_}, {"dtype", name_of(dtype)}, {"bytes", model->params().bytes()}}));
    note(text(model->params().count(), " parameters in ", name_of(dtype), " (those that must stay f32 are), in ", out_),
         invocation.common.quiet || invocation.common.json);
    return 0;
  }

 private:
  Path source_directory() const {
    const Path model = resolve_model(model_);
    return fs::is_directory(model) ? model : model.parent_path();
  }

  void write_new_directory(const Model& model) const {
    std::error_code ignored;
    require(!fs::exists(out_, ignored) || fs::is_empty(out_, ignored), "--out ", out_,
            " exists; expected a new directory, so that nothing is lost");
    write_directory(out_, [&](const Path& directory) {
      model.save(directory);
      for (const char* name : kTokenizerFiles)
        if (fs::exists(source_directory() / name)) write_file(directory / name, read_text(source_directory() / name));
    });
  }

  // The weights come last: without them the files beside them are no model.
  void write_beside(const Model& model) const {
    require_can_write(out_);
    write_or_compare("config.json", model.config().json());
    for (const char* name : kTokenizerFiles)
      if (fs::exists(source_directory() / name)) write_or_compare(name, read_text(source_directory() / name));
    NamedTensors tensors;
    for (const auto& param : model.params().all()) tensors.emplace_back(param->name, param->var.value);
    write_safetensors(out_, tensors, {{"format", "pt"}});
  }

  // What belongs to another model there is not overwritten.
  void write_or_compare(const char* name, const std::string& contents) const {
    const Path file = Path(out_).parent_path() / name;
    if (!fs::exists(file)) return write_file(file, contents);
    require(read_text(file) == contents, file.string(), " is there and differs from that of ", model_,
            "; expected --out in a directory without another model");
  }

  std::string model_, out_;
};

}  // namespace

std::unique_ptr<Command> make_convert() { return std::make_unique<Convert>(); }

}  // namespace ssm::cli
