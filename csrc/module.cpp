// The Python module itself: facts about the build and the machine.  No tensor passes through it;
// importing it registers the operators of ops.cpp.
// torch 2.11 refuses its copy of pybind11 beside the stable ABI, which this file makes no use of
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/peak.h"
#include "kept_memory.h"
#include "precision.h"

namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const colorseg::cpu::Isa* isa : colorseg::cpu::available_isas()) names.push_back(isa->name);
  return names;
}

// Those that kernels were compiled for; none in a CPU build.
std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
#if defined(COLORSEG_CUDA_ARCHITECTURES)
  std::istringstream list(COLORSEG_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ';');) names.push_back(name);
#endif
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and the CPU instruction set in use";
  m.attr("torch_built") = TORCH_VERSION;
  m.attr("cuda_built") = !cuda_architectures().empty();
  m.attr("cuda_arch_list") = cuda_architectures();
  m.attr("cpu_isa") =
      colorseg::cpu::isa().name;  // throws where COLORSEG_CPU_ISA asks for what is not there
  m.attr("available_isas") = available_isas();
  m.attr("cpu_bfloat16") = colorseg::cpu::pair_kernels() != nullptr;
  m.def("measure_peak", &colorseg::cpu::measure_peak, pybind11::arg("isa_name"),
        pybind11::arg("seconds"), pybind11::call_guard<pybind11::gil_scoped_release>(),
        "float32 GFLOP/s that the calling thread reaches on an instruction set");
  m.def(
      "limit_kept_memory", &colorseg::limit_kept_memory, pybind11::arg("bytes"),
      "How much memory of freed tensors waits for its next use, at most; returns the limit before");
  m.def("kept_memory", &colorseg::kept_memory, "Bytes that wait now");
  m.def("set_allow_tf32", &colorseg::set_allow_tf32, pybind11::arg("allowed"),
        "Whether float32 convolutions on CUDA may be computed in tf32");
}
