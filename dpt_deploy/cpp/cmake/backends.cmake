# Backend modules for TensorRT and TensorRT-RTX, compiled from the same sources. A module is built if the headers of its
# SDK and of CUDA are found.
#
# Only headers are needed: the libraries are opened at run time, so that a module also loads on a machine without them,
# and reports a readable error. The two SDKs use the same class names with different layouts, so each has its own
# module.

set(DPT_BACKEND_MODULES "")
file(GLOB cuda_roots /usr/local/cuda /usr/local/cuda-*)
find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS $ENV{CUDA_PATH} ${cuda_roots} PATH_SUFFIXES include)

# Stops the configuration if the headers are older than TensorRT 10.1.
function(dpt_check_tensorrt_version folder)
  set(found "")
  foreach(part MAJOR MINOR)
    set(line "")
    if(EXISTS ${folder}/NvInferVersion.h)
      # Since TensorRT 10.11, NV_TENSORRT_MAJOR is defined as TRT_MAJOR_ENTERPRISE, and that as the number.
      file(STRINGS ${folder}/NvInferVersion.h line
           REGEX "#define +(NV_TENSORRT_${part}|TRT_${part}_ENTERPRISE) +[0-9]+" LIMIT_COUNT 1)
    endif()
    string(REGEX MATCH " [0-9]+" number "${line}")
    string(STRIP "${number}" number)
    list(APPEND found ${number})
  endforeach()
  list(JOIN found "." found)
  if(NOT found)
    message(FATAL_ERROR "Expected the headers of TensorRT 10.1 or newer, but ${folder} has no NvInferVersion.h with a "
                        "version. Set -DTENSORRT_ROOT=FOLDER to an SDK, or -DTENSORRT_INCLUDE_DIR=OFF to build without "
                        "this backend.")
  elseif(found VERSION_LESS 10.1)
    message(FATAL_ERROR "Expected the headers of TensorRT 10.1 or newer (IExecutionContext::setDeviceMemoryV2), but "
                        "those in ${folder} are of TensorRT ${found}. Set -DTENSORRT_ROOT=FOLDER to a newer SDK, or "
                        "-DTENSORRT_INCLUDE_DIR=OFF to build without this backend.")
  endif()
endfunction()

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
  if(name STREQUAL tensorrt)
    dpt_check_tensorrt_version(${${upper}_INCLUDE_DIR})
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
