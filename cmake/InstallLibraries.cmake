# Run by cmake --install: copies the shared libraries that trireme_program loads, but for the system's, to trireme_library_folder.
cmake_policy(VERSION 3.25)

# Loaded by name at run time, so no library says that it needs them: the parts of cuDNN and NVRTC, and libtorch's on a GPU.
set(loaded_by_name libcudnn_*.so.* libnvrtc-builtins.so.* libtorch_cuda_linalg.so libcaffe2_nvrtc.so)

macro(find_dependencies)
  file(GET_RUNTIME_DEPENDENCIES EXECUTABLES "${trireme_program}" LIBRARIES ${by_name}
    RESOLVED_DEPENDENCIES_VAR found UNRESOLVED_DEPENDENCIES_VAR missing CONFLICTING_DEPENDENCIES_PREFIX conflicts
    POST_EXCLUDE_REGEXES "^/lib/" "^/lib64/" "^/usr/lib/" "^/usr/lib64/")
  # Found in two places, of which one is ours: libgomp.
  foreach(name IN LISTS conflicts_FILENAMES)
    list(GET conflicts_${name} 0 first)
    list(APPEND found ${first})
  endforeach()
endmacro()

set(by_name "")
find_dependencies()
foreach(library IN LISTS found)
  get_filename_component(folder "${library}" DIRECTORY)
  list(TRANSFORM loaded_by_name PREPEND "${folder}/" OUTPUT_VARIABLE patterns)
  if(library MATCHES "/lib(cudnn|nvrtc|torch_cuda)\\.so")
    file(GLOB beside ${patterns})
    list(APPEND by_name ${beside})
  endif()
endforeach()
if(by_name)
  list(REMOVE_DUPLICATES by_name)
  find_dependencies()
endif()
list(REMOVE_ITEM missing libcuda.so.1)  # It comes with the driver.
if(missing)
  message(WARNING "not found, so not installed: ${missing}")
endif()
file(INSTALL ${found} ${by_name} DESTINATION "${CMAKE_INSTALL_PREFIX}/${trireme_library_folder}" TYPE SHARED_LIBRARY FOLLOW_SYMLINK_CHAIN)
