// SPDX-License-Identifier: Apache-2.0
// The registers of a thread, on each kind of machine that CRIU runs on.
import { message, type Schema } from "../message.js";
import { hex64, lists, optional, run } from "./fields.js";
import { regsMode } from "./names.js";

/** What the registers of most machines come with. */
const threadInfo = (name: string, tls: "uint32" | "uint64", regs: Schema, more: Schema["fields"]): Schema =>
  message(name, {
    clear_tid_addr: hex64(1),
    tls: [2, tls, "required"],
    gpregs: [3, () => regs, "required", "hex"],
    ...more,
  });

/** "r0 r1 ... rN" */
const numbered = (prefix: string, first: number, last: number): string =>
  Array.from({ length: last - first + 1 }, (_, index) => `${prefix}${first + index}`).join(" ");

const x86Regs = message("user_x86_regs_entry", {
  ...run(
    "uint64",
    1,
    "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss fs_base gs_base ds es fs gs",
  ),
  mode: [28, "enum", "optional", regsMode],
});
const cet = message("user_x86_cet_entry", run("uint64", 1, "cet ssp", "hex"));
const xsave = message("user_x86_xsave_entry", {
  xstate_bv: [1, "uint64", "required"],
  ymmh_space: [2, "uint32", "repeated"],
  ...lists("uint64", 3, "bndreg_state bndcsr_state opmask_reg zmm_upper hi16_zmm"),
  pkru: [8, "uint32", "repeated"],
  cet: [9, () => cet],
});
const x86Fpregs = message("user_x86_fpregs_entry", {
  ...run("uint32", 1, "cwd swd twd fop"),
  ...run("uint64", 5, "rip rdp"),
  ...run("uint32", 7, "mxcsr mxcsr_mask"),
  ...lists("uint32", 9, "st_space xmm_space padding"),
  xsave: [13, () => xsave],
});
const userDesc = message("user_desc_t", {
  ...run("uint32", 1, "entry_number base_addr limit"),
  ...run("bool", 4, "seg_32bit contents_h contents_l read_exec_only limit_in_pages seg_not_present usable"),
});
export const x86 = message("thread_info_x86", {
  clear_tid_addr: hex64(1),
  gpregs: [2, () => x86Regs, "required", "hex"],
  fpregs: [3, () => x86Fpregs, "required"],
  tls: [4, () => userDesc, "repeated"],
});

const armRegs = message("user_arm_regs_entry", run("uint32", 1, `${numbered("r", 0, 10)} fp ip sp lr pc cpsr orig_r0`));
const vfp = message("user_arm_vfpstate_entry", {
  vfp_regs: [1, "uint64", "repeated"],
  ...run("uint32", 2, "fpscr fpexc fpinst fpinst2"),
});
export const arm = threadInfo("thread_info_arm", "uint32", armRegs, {
  fpstate: [4, () => vfp, "required"],
});

const aarch64Regs = message("user_aarch64_regs_entry", {
  regs: [1, "uint64", "repeated"],
  ...run("uint64", 2, "sp pc pstate"),
});
const fpsimd = message("user_aarch64_fpsimd_context_entry", {
  vregs: [1, "uint64", "repeated"],
  ...run("uint32", 2, "fpsr fpcr"),
});
const pacAddress = message(
  "pac_address_keys",
  run(
    "uint64",
    1,
    "apiakey_lo apiakey_hi apibkey_lo apibkey_hi apdakey_lo apdakey_hi apdbkey_lo apdbkey_hi pac_enabled_key",
  ),
);
const pacGeneric = message("pac_generic_keys", run("uint64", 1, "apgakey_lo apgakey_hi"));
const pac = message("pac_keys", {
  pac_address_keys: [6, () => pacAddress],
  pac_generic_keys: [7, () => pacGeneric],
});
export const aarch64 = threadInfo("thread_info_aarch64", "uint64", aarch64Regs, {
  fpsimd: [4, () => fpsimd, "required"],
  pac_keys: [5, () => pac],
});

const ppcRegs = message("user_ppc64_regs_entry", {
  gpr: [1, "uint64", "repeated"],
  ...run("uint64", 2, "nip msr orig_gpr3 ctr link xer ccr trap"),
  ...optional("uint64", 10, "texasr tfhar tfiar"),
});
const ppcFp = message("user_ppc64_fpstate_entry", { fpregs: [1, "uint64", "repeated"] });
const ppcVr = message("user_ppc64_vrstate_entry", {
  vrregs: [1, "uint64", "repeated"],
  vrsave: [2, "uint32", "required"],
});
const ppcVsx = message("user_ppc64_vsxstate_entry", { vsxregs: [1, "uint64", "repeated"] });
const ppcTm = message("user_ppc64_tm_regs_entry", {
  gpregs: [1, () => ppcRegs, "required"],
  fpstate: [2, () => ppcFp],
  vrstate: [3, () => ppcVr],
  vsxstate: [4, () => ppcVsx],
});
export const ppc64 = message("thread_info_ppc64", {
  clear_tid_addr: hex64(1),
  gpregs: [2, () => ppcRegs, "required", "hex"],
  fpstate: [3, () => ppcFp],
  vrstate: [4, () => ppcVr],
  vsxstate: [5, () => ppcVsx],
  tmstate: [6, () => ppcTm],
});

const s390Regs = message("user_s390_regs_entry", {
  ...run("uint64", 1, "psw_mask psw_addr"),
  gprs: [3, "uint64", "repeated"],
  acrs: [4, "uint32", "repeated"],
  orig_gpr2: [5, "uint64", "required"],
  system_call: [6, "uint32", "required"],
});
const vxrsLow = message("user_s390_vxrs_low_entry", { regs: [1, "uint64", "repeated"] });
const vxrsHigh = message("user_s390_vxrs_high_entry", { regs: [1, "uint64", "repeated"] });
const s390Fp = message("user_s390_fpregs_entry", {
  fpc: [1, "uint32", "required"],
  fprs: [2, "uint64", "repeated"],
});
const gsCb = message("user_s390_gs_cb_entry", { regs: [1, "uint64", "repeated"] });
const ri = message("user_s390_ri_entry", { ri_on: [1, "uint32", "required"], regs: [2, "uint64", "repeated"] });
export const s390 = message("thread_info_s390", {
  clear_tid_addr: hex64(1),
  gpregs: [2, () => s390Regs, "required", "hex"],
  fpregs: [3, () => s390Fp, "required", "hex"],
  vxrs_low: [4, () => vxrsLow, "optional", "hex"],
  vxrs_high: [5, () => vxrsHigh, "optional", "hex"],
  gs_cb: [6, () => gsCb, "optional", "hex"],
  gs_bc: [7, () => gsCb, "optional", "hex"],
  ri_cb: [8, () => ri, "optional", "hex"],
});

const mipsList = `${numbered("r", 0, 31)} lo hi`;
const mipsRegs = message(
  "user_mips_regs_entry",
  run("uint64", 1, `${mipsList} cp0_epc cp0_badvaddr cp0_status cp0_cause`),
);
const mipsFp = message("user_mips_fpregs_entry", {
  ...run("uint64", 1, mipsList),
  ...run("uint32", 35, "fpu_fcr31 fpu_id"),
});
export const mips = threadInfo("thread_info_mips", "uint64", mipsRegs, {
  fpregs: [4, () => mipsFp, "required", "hex"],
});

const loongRegs = message("user_loongarch64_gpregs_entry", {
  regs: [1, "uint64", "repeated"],
  pc: [2, "uint64", "required"],
});
const loongFp = message("user_loongarch64_fpregs_entry", {
  regs: [1, "uint64", "repeated"],
  fcc: [2, "uint64", "required"],
  fcsr: [3, "uint32", "required"],
});
export const loongarch64 = threadInfo("thread_info_loongarch64", "uint64", loongRegs, {
  fpregs: [4, () => loongFp, "required", "hex"],
});

const riscvRegs = message(
  "user_riscv64_regs_entry",
  run(
    "uint64",
    1,
    `pc ra sp gp tp ${numbered("t", 0, 2)} ${numbered("s", 0, 1)} ${numbered("a", 0, 7)} ${numbered("s", 2, 11)} ${numbered("t", 3, 6)}`,
  ),
);
const riscvFp = message("user_riscv64_d_ext_entry", {
  f: [1, "uint64", "repeated"],
  fcsr: [2, "uint32", "required"],
});
export const riscv64 = threadInfo("thread_info_riscv64", "uint64", riscvRegs, {
  fpsimd: [4, () => riscvFp, "required"],
});
