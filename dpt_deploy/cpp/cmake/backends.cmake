# Backend modules for TensorRT and TensorRT-RTX, compiled from the same sources. A module is built if the headers of its
# SDK and of CUDA are found.
#
# Only headers are needed: the libraries are opened at run time, so that a module also loads on a machine without them,
# and reports a readable error. The two SDKs use the same class names with different layouts, so each has its own
# module.

set(DPT_BACKEND_MODULES "")
file(GLOB cuda_roots /usr/local/cuda /usr/local/cuda-*)
find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS $ENV{CUDA_PATH} ${cuda_roots} PATH_SUFFIXES include)

function(dpt_add_backend name root)
  string(TOUPPER ${name} upper)
  find_path(${upper}_INCLUDE_DIR NvInfer.h HINTS ${${root}} $ENV{${root}} PATH_SUFFIXES include NO_DEFAULT_PATH)
  if(name STREQUAL tensorrt)
    find_path(${upper}_INCLUDE_DIR NvInfer.h) # NVIDIA's Debian packages install it in a system folder
  endif()
  if(NOT ${upper}_INCLUDE_DIR OR NOT CUDA_INCLUDE_DIR)
    message(STATUS "Not building backend ${name}: NvInfer.h (-D${root}=FOLDER) or the CUDA headers "
                   "(-DCUDA_INCLUDE_DIR=FOLDER) not found")
    return()
  endif()
  message(STATUS "Building backend ${name}: ${${upper}_INCLUDE_DIR}, CUDA ${CUDA_INCLUDE_DIR}")
  set(module dpt_backend_${name})
  add_library(${module} MODULE src/frames.cpp src/library.cpp src/tensorrt/cache.cpp src/tensorrt/cuda.cpp
                               src/tensorrt/engine.cpp src/tensorrt/module.cpp src/tensorrt/tensorrt_library.cpp)
  target_include_directories(${module} PRIVATE include src)
  target_include_directories(${module} SYSTEM PRIVATE ${${upper}_INCLUDE_DIR} ${CUDA_INCLUDE_DIR})
  target_compile_definitions(${module} PRIVATE DPT_BUILDING_RUNTIME)
  target_link_libraries(${module} PRIVATE dpt_warnings Threads::Threads ${CMAKE_DL_LIBS})
  target_link_options(${module} PRIVATE -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/src/dpt_runtime.map
                                        -Wl,-z,nodelete)
  set_target_properties(${module} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  set(DPT_BACKEND_MODULES ${DPT_BACKEND_MODULES} ${module} PARENT_SCOPE)
endfunction()

dpt_add_backend(tensorrt TENSORRT_ROOT)
dpt_add_backend(tensorrt_rtx TENSORRT_RTX_ROOT)
