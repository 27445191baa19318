# Backend modules: TensorRT and TensorRT-RTX, each where its headers and CUDA's are found, both from one source.
#
# Only headers are needed: the libraries are opened at run time, so that a module built here still loads, and refuses
# with a sentence, on a machine without them. The SDKs give their classes the same names and different layouts; in one
# library they would mix, so each has a module of its own.

set(DPT_BACKEND_MODULES "")
file(GLOB cuda_roots /usr/local/cuda /usr/local/cuda-*)
find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS $ENV{CUDA_PATH} ${cuda_roots} PATH_SUFFIXES include)

function(dpt_add_backend name root)
  string(TOUPPER ${name} upper)
  find_path(${upper}_INCLUDE_DIR NvInfer.h HINTS ${${root}} $ENV{${root}} PATH_SUFFIXES include NO_DEFAULT_PATH)
  if(name STREQUAL tensorrt)
    find_path(${upper}_INCLUDE_DIR NvInfer.h) # Debian packages of NVIDIA's put it where compilers look
  endif()
  if(NOT ${upper}_INCLUDE_DIR OR NOT CUDA_INCLUDE_DIR)
    message(STATUS "Backend ${name} is not built: no NvInfer.h (-D${root}=FOLDER) or no CUDA headers "
                   "(-DCUDA_INCLUDE_DIR=FOLDER)")
    return()
  endif()
  message(STATUS "Backend ${name}: ${${upper}_INCLUDE_DIR}, CUDA ${CUDA_INCLUDE_DIR}")
  set(module dpt_backend_${name})
  add_library(${module} MODULE src/frames.cpp src/library.cpp src/tensorrt/builder.cpp src/tensorrt/cache.cpp
                               src/tensorrt/cuda.cpp src/tensorrt/engine.cpp src/tensorrt/module.cpp)
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
