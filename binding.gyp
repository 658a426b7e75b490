{
  "variables": { "openssl_fips": "" },
  "targets": [
    {
      "target_name": "cryoshim",
      "sources": ["native/addon.c", "native/addon_surgeon.c", "native/addon_bpf.c", "native/addon_mqueue.c", "native/addon_namespace.c", "native/addon_socket.c", "native/addon_mount.c", "native/addon_pidfd.c", "native/addon_many.c", "native/addon_spfs.c", "native/addon_uring.c", "native/addon_patient.c", "native/addon_retire.c", "native/surgeon/surgeon.c", "native/surgeon/handover.c", "native/surgeon/memory.c", "native/surgeon/parasite.c", "native/surgeon/filter.c", "native/surgeon/freeze.c", "native/surgeon/patient.c"],
      "include_dirs": ["native", "native/surgeon"],
      "defines": ["NAPI_VERSION=8"],
      "cflags": ["-std=c17", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fstack-protector-strong", "-O2", "-D_FORTIFY_SOURCE=2", "-fno-strict-aliasing"],
      "ldflags": ["-Wl,-z,relro,-z,now"]
    },
    {
      "target_name": "programs",
      "type": "none",
      "dependencies": ["cryoshim"],
      "actions": [
        {
          "action_name": "make",
          "inputs": ["native/Makefile", "<!@(find native spfs -name '*.[ch]')"],
          "outputs": ["<(PRODUCT_DIR)/criu", "<(PRODUCT_DIR)/spfs", "<(PRODUCT_DIR)/engine-plugin.so", "<(PRODUCT_DIR)/lock.bpf.o", "<(PRODUCT_DIR)/xray.bpf.o", "<(PRODUCT_DIR)/cork.bpf.o", "<(PRODUCT_DIR)/pages.bpf.o", "<(PRODUCT_DIR)/mount.bpf.o", "<(PRODUCT_DIR)/uring.bpf.o", "<(PRODUCT_DIR)/uring-inflight.bpf.o"],
          "action": ["make", "-C", "native", "OUT=<(PRODUCT_DIR)"]
        }
      ]
    }
  ]
}
