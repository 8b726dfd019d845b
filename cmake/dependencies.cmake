# Libraries that ssm::ssm links, as ssm::highway, ssm::openblas and so on. Used by the build and, installed beside
# ssmConfig.cmake, by find_package(ssm), so that both look in the same places. Found by header and library rather than
# through the packages' own configuration: Debian 12's hwy-config.cmake names a directory that does not exist.
include(FindPackageHandleStandardArgs)
find_package(Threads REQUIRED)

function(ssm_find_library name header library)
  string(TOUPPER ${name} upper)
  find_path(SSM_${upper}_INCLUDE_DIR ${header} PATH_SUFFIXES ${ARGN})
  find_library(SSM_${upper}_LIBRARY ${library} PATH_SUFFIXES ${ARGN})
  mark_as_advanced(SSM_${upper}_INCLUDE_DIR SSM_${upper}_LIBRARY)
  if(NOT SSM_${upper}_INCLUDE_DIR OR NOT SSM_${upper}_LIBRARY)
    message(FATAL_ERROR "ssm needs ${name}: <${header}> and lib${library} were not found. On Debian ./quickstart "
                        "installs them; elsewhere add their prefix to CMAKE_PREFIX_PATH.")
  endif()
  if(NOT TARGET ssm::${name})
    add_library(ssm::${name} UNKNOWN IMPORTED)
    set_target_properties(ssm::${name} PROPERTIES IMPORTED_LOCATION "${SSM_${upper}_LIBRARY}"
                                                  INTERFACE_INCLUDE_DIRECTORIES "${SSM_${upper}_INCLUDE_DIR}")
  endif()
endfunction()

ssm_find_library(highway hwy/highway.h hwy)
ssm_find_library(openblas cblas.h openblas openblas-pthread)  # the folder of Debian's variant with its own threads
ssm_find_library(kissfft kissfft/kiss_fftr.h kissfft-float)
ssm_find_library(pcre2 pcre2.h pcre2-8)
ssm_find_library(utf8proc utf8proc.h utf8proc)
ssm_find_library(sentencepiece sentencepiece_processor.h sentencepiece)
if(SSM_HIGHWAY_LIBRARY MATCHES "\\.so$")
  set_property(TARGET ssm::highway PROPERTY INTERFACE_COMPILE_DEFINITIONS HWY_SHARED_DEFINE)
endif()
if(SSM_CUDA)
  find_package(CUDAToolkit 12.4 REQUIRED)  # CUDA::cudart_static; a program that links ssm::ssm compiles no CUDA itself
endif()
