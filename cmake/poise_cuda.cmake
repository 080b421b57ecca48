# The .cu files of kernels/cuda are compiled twice: by nvcc where a toolkit is found, and as C++ for the simulator of
# kernels/sim where there is a C++ compiler. docs/gpu.md.
set(POISE_CUDA AUTO CACHE STRING "compile the GPU kernels with nvcc: ON, OFF, or AUTO where a toolkit is found")
set_property(CACHE POISE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(POISE_CUDA_ARCHITECTURES "80;90" CACHE STRING "compute capabilities that nvcc compiles for")

# The thread sanitizer's hooks are the simulator's own there, and fuzz programs call no kernels.
option(POISE_SIMULATOR "build the simulated GPU, where there is a C++ compiler" ON)
set(POISE_SIM OFF)
if(POISE_SIMULATOR AND NOT POISE_SANITIZE MATCHES "thread" AND NOT POISE_FUZZ)
  include(CheckLanguage)
  check_language(CXX)
  if(CMAKE_CXX_COMPILER)
    enable_language(CXX)
    set(CMAKE_CXX_EXTENSIONS OFF)
    set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")
    set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g")
    set(POISE_SIM ON)
  endif()
endif()

# poise_simulated(SOURCES...): these .cu files, in targets of the calling folder, are C++ for the simulator. Every load
# and store calls a hook (kernels/sim/hooks.c), which is what -fsanitize=thread is for here; no exceptions, so that
# nothing of a C++ library is needed.
function(poise_simulated)
  set_source_files_properties(
    ${ARGN}
    PROPERTIES LANGUAGE CXX
               COMPILE_OPTIONS "-x;c++;-std=c++17;-fno-exceptions;-fno-rtti;-fno-strict-aliasing;-fno-sanitize=address;-fsanitize=thread")
endfunction()

# poise_devices(TARGET [MEMBERS...]): the program can open the devices cuda and sim, or the given ones, as far as this build has them. Nothing in its
# sources names their tables (kernels/device.c asks whether they are there), so the linker is told to look for them.
function(poise_devices target)
  set(members ${ARGN})
  if(NOT members)
    set(members cuda sim)
  endif()
  foreach(member ${members})
    if(TARGET poise_${member})
      target_link_libraries(${target} PRIVATE poise_${member})
      target_link_options(${target} PRIVATE -Wl,-u,device_${member}_table)
    endif()
  endforeach()
  if(TARGET poise_sim)
    target_link_options(${target} PRIVATE -Wl,-u,sim_nccl) # common/comm asks whether it is there
  endif()
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE C)
endfunction()
