# The test program and its ctest entries. One program holds every suite; ctest runs it in a few shards, so that two
# cores share the work and configuring never has to run the program to learn its tests. A suite's name decides its
# label: *Cuda* is `cuda`, *Slow* is `slow`, the rest is `fast`. Tests of every device (the laws, and those with
# EveryDevice in their names) run a second time as `cuda`, on the GPU alone; without one they skip.
find_package(GTest 1.12 REQUIRED)

add_executable(ssm_tests ${test_sources})
target_compile_definitions(ssm_tests PRIVATE SSM_SOURCE_ROOT="${PROJECT_SOURCE_DIR}")
target_include_directories(ssm_tests PRIVATE ${PROJECT_SOURCE_DIR})  # "tests/op_check.h"
target_link_libraries(ssm_tests PRIVATE ssm ssm::highway ssm::openblas nlohmann_json::nlohmann_json GTest::gtest_main)
if(TARGET ssm_program)
  target_link_libraries(ssm_tests PRIVATE ssm_commands)
  # Command cases run the program itself.
  target_compile_definitions(ssm_tests PRIVATE SSM_PROGRAM="$<TARGET_FILE:ssm_program>")
  add_dependencies(ssm_tests ssm_program)
endif()

# `seconds` bounds one shard on a slow machine with two busy cores.
function(ssm_add_shards label shards seconds filter)
  math(EXPR last "${shards} - 1")
  foreach(index RANGE ${last})
    set(name ${label}.${index})
    add_test(NAME ${name} COMMAND ssm_tests --gtest_filter=${filter} --gtest_brief=1)
    set_tests_properties(
      ${name}
      PROPERTIES LABELS ${label} TIMEOUT ${seconds} ENVIRONMENT
                                 "GTEST_TOTAL_SHARDS=${shards};GTEST_SHARD_INDEX=${index}")
  endforeach()
endfunction()

ssm_add_shards(fast 4 300 "-*Slow*.*:*Cuda*.*")
ssm_add_shards(slow 2 1800 "*Slow*.*-*Cuda*.*")
if(SSM_CUDA)
  ssm_add_shards(cuda 1 900 "*Cuda*.*:*EveryDevice*:Laws.*")
  set_property(TEST cuda.0 APPEND PROPERTY ENVIRONMENT "SSM_TEST_DEVICE=cuda")
endif()

# Installs this build and compiles the examples against it, outside the tree. Not under a sanitizer: its users would
# need the sanitizer too.
if(NOT SSM_SANITIZE)
  add_test(NAME install COMMAND ${CMAKE_COMMAND} -DBUILD_DIR=${PROJECT_BINARY_DIR} -DCONFIG=$<CONFIG>
                                -DGENERATOR=${CMAKE_GENERATOR} -DCXX=${CMAKE_CXX_COMPILER} -P
                                ${PROJECT_SOURCE_DIR}/tests/install/run.cmake)
  set_tests_properties(install PROPERTIES LABELS fast TIMEOUT 300)
endif()
