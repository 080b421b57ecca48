# Compiler settings shared by every target. Warnings are errors; floating-point contraction is off because the
# bit contract (docs/architecture.md) needs every fused multiply-add to be written out.
add_library(poise_options INTERFACE)
target_compile_features(poise_options INTERFACE c_std_17)
target_compile_definitions(poise_options INTERFACE _GNU_SOURCE)
target_compile_options(
  poise_options
  INTERFACE -Wall
            -Wextra
            -Wshadow
            $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes>
            $<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes>
            -Wpointer-arith
            -Wvla
            -Wundef
            -Wformat=2
            -Werror
            -ffp-contract=off
            -fno-math-errno
            -fno-trapping-math
            -fvisibility=default)
target_include_directories(poise_options INTERFACE ${POISE_ROOT})

set(POISE_SANITIZE "" CACHE STRING "address, undefined or thread (may be joined by commas)")
if(POISE_SANITIZE)
  # Instrumented code makes gcc warn of what cannot happen; the plain builds are where warnings are errors.
  target_compile_options(poise_options INTERFACE -Wno-error)
  target_compile_options(poise_options INTERFACE -fsanitize=${POISE_SANITIZE} -fno-omit-frame-pointer
                                                 -fno-sanitize-recover=all)
  target_link_options(poise_options INTERFACE -fsanitize=${POISE_SANITIZE})
endif()

# Coverage for libFuzzer in every source, or its programs would search blindly.
if(POISE_FUZZ AND CMAKE_C_COMPILER_ID MATCHES "Clang")
  target_compile_options(poise_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# poise_room(NAME DIRS... [LINK libs...]): one static library from every .c file of the given folders.
function(poise_room name)
  cmake_parse_arguments(ROOM "" "" "DIRS;LINK" ${ARGN})
  set(sources "")
  foreach(dir ${ROOM_DIRS})
    file(GLOB found CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${dir}/*.c)
    list(APPEND sources ${found})
  endforeach()
  if(NOT sources)
    return()
  endif()
  add_library(${name} STATIC ${sources})
  target_link_libraries(${name} PUBLIC poise_options ${ROOM_LINK})
endfunction()
