// The front of ssm_kernel: checks, allocation, choice of the version, record of the backward.
#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm {

Var ssm_kernel(const Ctx& ctx, const StateSpace& system, int64_t length) {
  const Shape shape = system.z.value.shape();
  require(shape.rank() == 3 && (shape[0] == 1 || shape[0] == 2), "ssm_kernel: z is ", shape,
          ", expected (1 or 2, n, e)");
  for (const auto& [name, var] : {std::pair{"b", &system.b}, {"c", &system.c}, {"f", &system.f}, {"g", &system.g}})
    require((!*var && (name[0] == 'f' || name[0] == 'g')) || var->value.shape() == shape, "ssm_kernel: ", name, " is ",
            var->value.shape(), ", expected ", shape);
  require(static_cast<bool>(system.f) == static_cast<bool>(system.g) && (!system.f || shape[0] == 2),
          "ssm_kernel: f and g go together, with a complex system");
  require(0 <= length && length <= int64_t{1} << 28, "ssm_kernel: a kernel of ", length, " taps, expected 0 to 2^28");

  const SsmKernelForward args{.z = system.z.value,
                              .b = system.b.value,
                              .c = system.c.value,
                              .f = system.f.value,
                              .g = system.g.value,
                              .K = Tensor::empty({length, shape[2]}, system.z.value.dtype(), ctx.device)};
  SSM_RUN(ctx.device, *ctx.threads, ssm_kernel_forward, args);
  const Var K = ctx.output(args.K);
  if (!ctx.tape) return K;
  ctx.tape->record("ssm_kernel", {{"z", args.z}, {"b", args.b}, {"c", args.c}, {"f", args.f}, {"g", args.g}}, {K.grad},
                   [device = ctx.device, threads = ctx.threads, dz = system.z.grad, db = system.b.grad,
                    dc = system.c.grad, df = system.f.grad, dg = system.g.grad](const Backward& b) {
                     const GradOut z_out(dz), b_out(db), c_out(dc), f_out(df), g_out(dg);
                     const auto sum = [](const Tensor& like, const Tensor& wanted) {
                       return wanted || !like ? wanted : Tensor::empty(like.shape(), like.dtype(), like.device());
                     };
                     SsmKernelBackward back{.z = b.saved("z"),
                                            .b = b.saved("b"),
                                            .c = b.saved("c"),
                                            .f = b.saved("f"),
                                            .g = b.saved("g"),
                                            .dK = b.grad(0)};
                     back.dz = sum(back.z, z_out.out);
                     back.db = sum(back.b, b_out.out);
                     back.dc = sum(back.c, c_out.out);
                     back.df = sum(back.f, f_out.out);
                     back.dg = sum(back.g, g_out.out);
                     SSM_RUN(device, *threads, ssm_kernel_backward, back);
                   });
  return K;
}

}  // namespace ssm
