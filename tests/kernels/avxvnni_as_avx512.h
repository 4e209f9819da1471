// Included before the files for AVX-VNNI, which then need AVX-512 VNNI: the same instructions in another encoding.
#pragma once
#include <immintrin.h>

#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
