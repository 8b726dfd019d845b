// `ssm convert`: a model as config.json and safetensors, in the naming and dtype asked for; or a preset's random
// initial weights. Tensors go from file to file one at a time.
#include <array>
#include <charconv>
#include <filesystem>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "models/model_file.h"

namespace ssm::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightsFile = ".safetensors";
constexpr std::array<const char*, 5> kTextFiles = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                                   "tokenizer.model", "generation_config.json"};

// "5GB", "500MB", "200KB", powers of 1000 as transformers counts them, "4GiB" and so on of 1024; or bytes.
int64_t bytes_named(const std::string& word) {
  struct Unit {
    std::string_view name;
    int64_t bytes;
  };
  constexpr std::array<Unit, 7> kUnits = {{{"KB", 1000},
                                           {"MB", 1000'000},
                                           {"GB", 1000'000'000},
                                           {"KiB", 1 << 10},
                                           {"MiB", 1 << 20},
                                           {"GiB", 1 << 30},
                                           {"", 1}}};
  int64_t number = 0;
  const char* const end = word.data() + word.size();
  const auto [stopped, problem] = std::from_chars(word.data(), end, number);
  for (const Unit& unit : kUnits)
    if (problem == std::errc{} && std::string_view(stopped, end) == unit.name && number > 0 &&
        number <= INT64_MAX / unit.bytes)
      return number * unit.bytes;
  throw UsageError("--max-shard-size is \"", word, "\", expected bytes such as 5GB, 500MB or 200KB");
}

class Convert : public Command {
 public:
  std::string name() const override { return "convert"; }
  std::string summary() const override { return "a model in another format, naming or dtype"; }
  std::string example() const override { return "ssm convert runs/shakespeare --out shakespeare-bf16 --dtype bf16"; }
  std::vector<std::string> positional() const override { return {"model"}; }

  Fields fields() override {
    return {
        {"model", &model_, "a model's directory or weights file"},
        {"preset", &preset_, "instead of a model: the random initial weights of a published size; --seed draws them"},
        {.name = "out",
         .target = &out_,
         .help = "a new directory, or a file F.safetensors with config.json beside it",
         .required = true},
        {"naming", &naming_, "of tensors and config: state-spaces or huggingface; auto: as the model has it"},
        {"max_shard_size", &max_shard_size_, "several files of this size at most and an index: 5GB, 500MB, ..."}};
  }

  int run(const Invocation& invocation) override {
    require_usage(model_.empty() != preset_.empty(), "ssm convert needs one of MODEL and --preset NAME");
    require_usage(
        naming_ == "auto" || naming_ == name_of(Naming::state_spaces) || naming_ == name_of(Naming::huggingface),
        "--naming is \"", naming_, "\", expected auto, state-spaces or huggingface");
    WriteModel options{.dtype = invocation.common.dtype_kind()};
    if (!max_shard_size_.empty()) options.shard_bytes = bytes_named(max_shard_size_);
    if (naming_ == name_of(Naming::huggingface)) options.naming = Naming::huggingface;
    const bool one_file = Path(out_).extension() == kWeightsFile;
    require_usage(!one_file || max_shard_size_.empty(), "--max-shard-size with --out ", out_,
                  ": several files need a directory");
    if (!one_file) require_new_directory();

    int64_t bytes = 0;
    DType dtype = options.dtype.value_or(DType::f32);
    if (!preset_.empty()) {
      require_usage(!one_file, "--preset with --out ", out_, ": expected a new directory");
      const ModelConfig config = ModelConfig::preset(preset_);
      write_directory(out_, [&](const Path& directory) {
        write_new_model(directory, config, static_cast<uint64_t>(invocation.common.seed), options);
        bytes = weights_in(directory);
      });
    } else {
      const ModelFile file = ModelFile::open(model_);
      if (naming_ == "auto") options.naming = file.naming;
      dtype = options.dtype.value_or(file.dtype);
      if (one_file)
        write_beside(file, options);
      else
        write_directory(out_, [&](const Path& directory) {
          write_model(directory, file, options);
          for (const char* name : kTextFiles)
            if (fs::exists(beside(file, name))) write_file(directory / name, read_text(beside(file, name)));
        });
      bytes = one_file ? static_cast<int64_t>(fs::file_size(out_)) : weights_in(out_);
    }
    if (invocation.common.json)
      print(
          json_line({{"out", out_}, {"dtype", name_of(dtype)}, {"naming", name_of(options.naming)}, {"bytes", bytes}}));
    note(text(byte_count(static_cast<double>(bytes)), " of weights in ", out_, ", names of ", name_of(options.naming)),
         invocation.common.quiet || invocation.common.json);
    return 0;
  }

 private:
  static Path beside(const ModelFile& file, const char* name) { return file.config_path.parent_path() / name; }

  static int64_t weights_in(const Path& directory) {
    int64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(directory))
      if (entry.path().extension() == kWeightsFile) bytes += static_cast<int64_t>(entry.file_size());
    return bytes;
  }

  void require_new_directory() const {
    std::error_code ignored;
    require(!fs::exists(out_, ignored) || fs::is_empty(out_, ignored), "--out ", out_,
            " exists; expected a new directory, so that nothing is lost");
  }

  // The weights come last: without them the files beside them are no model.
  void write_beside(const ModelFile& file, const WriteModel& options) const {
    require_can_write(out_);
    write_or_compare("config.json", config_of(file, options));
    for (const char* name : kTextFiles)
      if (fs::exists(beside(file, name))) write_or_compare(name, read_text(beside(file, name)));
    stream_safetensors(out_, weights_of(file, options), {{"format", "pt"}});
  }

  // What belongs to another model there is not overwritten.
  void write_or_compare(const char* name, const std::string& contents) const {
    const Path file = Path(out_).parent_path() / name;
    if (!fs::exists(file)) return write_file(file, contents);
    require(read_text(file) == contents, file.string(), " is there and differs from that of ", model_,
            "; expected --out in a directory without another model");
  }

  std::string model_, preset_, out_, naming_ = "auto", max_shard_size_;
};

}  // namespace

std::unique_ptr<Command> make_convert() { return std::make_unique<Convert>(); }

}  // namespace ssm::cli
