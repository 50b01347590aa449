"""Kernels of a traced pass: time, gaps, names, who wrote them, and a GPU that waits for the host."""

import json

import pytest

from tests.unit.builders import record
from workbench.device.cupti import demangle
from workbench.device.kernels import (
    NAME_LENGTH,
    NAMES,
    Activity,
    HostTimes,
    busy_ns,
    host_bound,
    origin_of,
    shorten,
    summarise,
)
from workbench.kernel_lines import kernel_lines

HOST = HostTimes(enqueue_s=1e-6, wall_s=2e-6)
ADD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<c10::BFloat16, "
    "c10::BFloat16, at::native::binary_internal::MulFunctor<float> >, std::array<char*, 3ul> >"
    "(int, at::native::BinaryFunctor<c10::BFloat16>, std::array<char*, 3ul>)"
)
GEMVX = (
    "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, float, false>"
    "(cublasGemvParamsEx<int, cublasGemvTensorStridedBatched<__nv_bfloat16 const>, float>)"
)


def ran(*spans: tuple[int, int], name: str = "triton_poi_fused_0") -> list[Activity]:
    return [Activity(name, start, end) for start, end in spans]


@pytest.mark.parametrize(
    ("spans", "busy"),
    [
        ([(0, 10)], 10),
        ([(0, 10), (10, 15)], 15),
        ([(0, 10), (5, 15)], 15),
        ([(0, 100), (20, 30), (40, 50)], 100),
        ([(50, 60), (0, 10), (5, 20)], 30),
        ([(10, 20), (10, 20)], 10),
    ],
)
def test_kernels_that_overlap_are_busy_once_in_whatever_order_they_come(
    spans: list[tuple[int, int]], busy: int
) -> None:
    assert busy_ns(ran(*spans)) == busy


def test_times_and_counts_are_those_of_one_step() -> None:
    start = 1_700_000_000_000_000_000  # nanoseconds since 1970 are beyond a float's precision
    spans = [(start, start + 100), (start + 150, start + 250), (start + 200, start + 400)]
    found = summarise(ran(*spans), 2, HOST)
    assert found["span_s"] == pytest.approx(200e-9)
    assert found["busy_s"] == pytest.approx(175e-9)
    assert found["gaps_s"] == pytest.approx(25e-9)
    assert found["launches"] == 1.5
    assert (found["enqueue_s"], found["wall_s"]) == (1e-6, 2e-6)
    (kernel,) = found["kernels"]
    assert kernel["count"] == 1.5
    assert kernel["total_s"] == pytest.approx(200e-9)
    assert json.loads(json.dumps(found)) == found


def test_kernels_are_sorted_by_time_with_shares_that_add_up() -> None:
    traced = [
        *ran((0, 60), name="nvjet_tst_64x8_64x16_4x1_v_bz_TNT"),
        *ran((60, 80), (80, 90), name=ADD),
        *ran((90, 100)),
    ]
    found = summarise(traced, 1, HOST)
    assert [(row["origin"], row["share"]) for row in found["kernels"]] == [
        ("vendor", pytest.approx(0.6)),
        ("framework", pytest.approx(0.3)),
        ("generated", pytest.approx(0.1)),
    ]
    assert found["shares"] == pytest.approx({"vendor": 0.6, "framework": 0.3, "generated": 0.1})


def test_a_record_names_so_many_kernels_and_sums_up_the_others() -> None:
    traced = [
        each
        for number in range(NAMES + 3)
        for each in ran((0, 1000 - number), name=f"triton_poi_fused_{number}")
    ]
    found = summarise(traced, 1, HOST)
    assert len(found["kernels"]) == NAMES + 1
    others = found["kernels"][-1]
    assert (others["name"], others["count"], others["origin"]) == ("3 others", 3, "various")
    assert sum(row["share"] for row in found["kernels"]) == pytest.approx(1.0)
    assert found["shares"]["generated"] == pytest.approx(1.0)


@pytest.mark.parametrize(("small", "named"), [(1, 2), (2, 1)])
def test_several_small_kernels_are_summed_up_and_a_single_one_is_named(small: int, named: int) -> None:
    traced = [*ran((0, 1000), name=ADD), *(ran((1000, 1004), name=f"tiny_{at}")[0] for at in range(small))]
    found = summarise(traced, 1, HOST)["kernels"]
    assert [row["name"] for row in found][named:] == [f"{small} others"][: small - 1]
    assert sum(row["total_s"] for row in found) == pytest.approx((1000 + 4 * small) * 1e-9)


def test_a_pass_without_kernels_is_an_error() -> None:
    with pytest.raises(ValueError, match="no kernel"):
        summarise([], 1, HOST)


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("nvjet_tst_128x64_64x8_2x1_v_bz_TNN", "vendor"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", "vendor"),
        ("ampere_sgemm_128x64_tn", "vendor"),
        (
            "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64_tn_align8>",
            "vendor",
        ),
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<int> >(int)", "vendor"),
        (GEMVX, "vendor"),
        ("void gemvNSP_kernel<__nv_bfloat16, float, 1, 32>(int)", "vendor"),
        ("void gemv2T_kernel_val<int, int, float>(int)", "vendor"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>(int)", "vendor"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128", "vendor"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64> >(int)", "vendor"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(AttentionKernel<cutlass::bfloat16_t>::Params)", "vendor"),
        ("void flashinfer::BatchPrefillWithPagedKVCacheKernel<int>(int)", "vendor"),
        ("void onnxruntime::flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64> >(int)", "vendor"),
        ("onnxruntime::contrib::cuda::H128::grp4_bf16::kernel_mha", "vendor"),
        ("kernel_mha", "vendor"),
        ("onnxruntime::cuda::_SplitSmallInnerKernel<int4>", "framework"),
        (ADD, "framework"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>(int)", "framework"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 8, false>(int)", "framework"),
        ("void at_cuda_detail::cub::DeviceReduceKernel<int>(int)", "framework"),
        ("memcpy_DTOD", "framework"),
        ("memset", "framework"),
        ("triton_tem_fused_mm_cudnn_like_3", "generated"),
        ("triton_red_fused__to_copy_mean_pow_rsqrt_7", "generated"),
        ("loop_add_fusion", "generated"),
        ("gemm_fusion_dot_12_0", "generated"),
        ("fused_NT_matmul1_add_kernel", "generated"),
        ("decode$async_dispatch_12_matmul_1x128256x2048", "generated"),
        ("my_own_kernel", "generated"),
    ],
)
def test_origin_is_told_by_the_name(name: str, origin: str) -> None:
    assert origin_of(name) == origin


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("triton_poi_fused_0", "triton_poi_fused_0"),
        ("memcpy_DTOD", "memcpy_DTOD"),
        (GEMVX, "internal::gemvx::kernel<int, int, __nv_bfloat16, float, false>"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, 4>(int)", None),
        ("fmha_cutlassF_bf16(AttentionKernel<cutlass::bfloat16_t>::Params)", "fmha_cutlassF_bf16"),
        ("", ""),
    ],
)
def test_a_name_loses_its_return_type_and_parameters(name: str, short: str | None) -> None:
    assert shorten(name) == ("at::native::CatArrayBatchedCopy<float, 4>" if short is None else short)


def test_what_a_kernel_does_is_still_read_in_a_short_name() -> None:
    short = shorten(ADD)
    assert short.startswith("at::native::vectorized_elementwise_kernel<4, BinaryFunctor<BFloat16, ")
    assert "MulFunctor" in short
    assert len(shorten("k<" + "x" * 500 + ">")) == NAME_LENGTH


def test_mangled_names_are_read_and_others_left_alone() -> None:
    assert demangle("_ZN2at6native6kernelIfEEvi") == "void at::native::kernel<float>(int)"
    assert demangle("i") == "i"  # a type to the C++ runtime
    assert demangle("_Z not mangled") == "_Z not mangled"


def test_a_gpu_that_waits_for_the_host_is_warned_of_with_a_way_out() -> None:
    found = summarise(ran((0, 1_900_000)), 1, HostTimes(enqueue_s=5.2e-3, wall_s=5.3e-3))
    line = host_bound(found, call_s=5.1e-3)
    assert line is not None
    assert "waits for the host: launching takes 5.20 ms, the kernels 1.90 ms" in line
    assert "CUDA graph" in line


def test_a_gpu_whose_kernels_begin_late_is_warned_of_too() -> None:
    found = summarise(ran((0, 11_200_000)), 1, HostTimes(enqueue_s=5.7e-3, wall_s=16.2e-3))
    line = host_bound(found, call_s=16e-3)
    assert line is not None
    assert "5.00 ms of 16.2 ms pass before its first kernel or after its last" in line


@pytest.mark.parametrize(("wall_s", "warned"), [(12.4e-3, False), (12.6e-3, True)])
def test_a_tenth_of_the_call_may_pass_without_a_kernel(wall_s: float, warned: bool) -> None:
    found = summarise(ran((0, 11_250_000)), 1, HostTimes(enqueue_s=5.7e-3, wall_s=wall_s))
    assert (host_bound(found, call_s=wall_s) is not None) is warned


@pytest.mark.parametrize("enqueue_s", [1e-5, 1.9e-3, 2.0e-3])
def test_an_engine_that_only_returns_late_is_not_warned_of(enqueue_s: float) -> None:
    found = summarise(ran((0, 1_900_000)), 1, HostTimes(enqueue_s, wall_s=2e-3))
    assert host_bound(found, call_s=2.2e-3) is None


def test_a_gpu_whose_kernels_fill_the_call_as_it_was_timed_waits_for_nobody() -> None:
    found = summarise(ran((0, 1_900_000)), 1, HostTimes(enqueue_s=5.2e-3, wall_s=5.3e-3))
    assert host_bound(found, call_s=2.0e-3) is None


def test_kernels_are_printed_by_share_with_the_rest_named_by_number() -> None:
    traced = [each for number in range(10) for each in ran((0, 10**8 - number), name=f"triton_{number}")]
    kernels = summarise(traced, 1, HOST)
    lines = kernel_lines([record("compile", device="cuda:0", kernels=kernels)])
    assert lines[0] == "kernels of one decode step, traced apart from the times:"
    assert "compile: busy 100 ms of 100 ms traced, gaps 0.00 ns, 10 launches, enqueued in" in lines[1]
    assert lines[1].endswith("; generated 100 %")
    assert "triton_0" in lines[2]
    assert lines[-1].strip() == "and 2 more in the record"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "this row is of a CPU"),
        ({"device": "cuda:0"}, "--again"),
        ({"device": "cuda:0", "no_kernels": "cupti-python is missing"}, "cupti-python is missing"),
        ({"device": "cuda:0", "status": "crashed"}, "it is crashed"),
    ],
)
def test_a_row_without_kernels_says_why(changes: dict[str, str], words: str) -> None:
    (_, line) = kernel_lines([record(**changes)])
    assert line.startswith("  eager: not traced: ")
    assert words in line
