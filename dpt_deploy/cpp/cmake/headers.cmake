# The headers that the sources need: ONNX Runtime's C API, nlohmann/json and, for the examples, stb. No Python wheel
# contains them. System headers are used if they exist, otherwise those of Debian's packages.

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h PATH_SUFFIXES onnxruntime)
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp)
find_path(STB_INCLUDE_DIR stb_image_write.h PATH_SUFFIXES stb)

if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT NLOHMANN_JSON_INCLUDE_DIR OR (DPT_EXAMPLES AND NOT STB_INCLUDE_DIR))
  set(folder ${CMAKE_BINARY_DIR}/headers)
  if(DEFINED ENV{DPT_CPP_HEADERS}) # a folder that several builds can share
    set(folder $ENV{DPT_CPP_HEADERS})
  endif()
  set(include ${folder}/usr/include)
  if(NOT EXISTS ${folder}/complete)
    execute_process(COMMAND sh ${CMAKE_CURRENT_LIST_DIR}/fetch_headers.sh ${folder} RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "The headers of ONNX Runtime and nlohmann/json were not found and could not be downloaded. "
                          "Install libonnxruntime-dev and nlohmann-json3-dev, or set their folders: "
                          "-DONNXRUNTIME_INCLUDE_DIR=FOLDER -DNLOHMANN_JSON_INCLUDE_DIR=FOLDER")
    endif()
  endif()
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h PATHS ${include}/onnxruntime NO_DEFAULT_PATH REQUIRED)
  find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp PATHS ${include} NO_DEFAULT_PATH REQUIRED)
  find_path(STB_INCLUDE_DIR stb_image_write.h PATHS ${include}/stb NO_DEFAULT_PATH)
endif()
