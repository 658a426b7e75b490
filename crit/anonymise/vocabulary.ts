// SPDX-License-Identifier: Apache-2.0
// Words that may stand in an anonymised text because everybody's texts have them: whatever is not here is replaced.

const list = (words: string): ReadonlySet<string> => new Set(words.trim().split(/\s+/));

/** Of CRIU's log messages: those that a dump and a restore print, and those of its errors. In small letters. */
export const LOG = list(`
  a aa abi aborting about accept access ack action add addr address addresses adjust after aio alien aligned all alloc allocate
  allow allowed already altivec amd an and anon-shmem answer api apparmor apply are area args argument arm as assigned at attach
  attempts authentication autofs available back backend background bad bb be because been being bfd big bind bind-mount
  binfmt_misc bit blob block blocked bo bo_buckets bo_info bogus bootstrap boottime borrows botest bound bounds bpf bpfmap
  branches breakpoint breakpoints bsearch bucket buf buf_lock buffer buffers bug building built but by bytes cache calculating
  call calling can can't cannot capabilities capability carries cause cd cf cg cg-prop cg_controller_entry cgid cgns cgroup
  cgroupd cgroups cgyard chain change chdir check checking checkpointed child children chroot class clean cleaning cleanup clear
  client clock clockid clone clone_newpid clone_parent clone_restore_fn close close_range closed cmd code collect collected
  collecting combinations comm command compat compatible compel complete config configuration configure configuring confs
  connect connected connection connections consider consult content contents context continue continued control controller
  controller's controls convert copy core corrupted corruption could couldn't counter cov cow cpu cpuinfo cpuset create created
  creating creation criu criu's css cuda cuda-checkpoint cuid cure current cwd daemon daemonized data dead debug default deleted
  deprecated description descriptor descriptors descs desired dest detach detached detected determine determined dev dev's
  device devices dgram diag did didn't differ dir directory dirty disable dmabuf dmabuf_fd do does doesn't don't done driver
  drop dropped dt_gnu_hash dt_hash dt_strsz dt_strtab dt_syment dt_symtab dump dumped dumpee dumper dumping dup duplicate
  dynamic ee efd elf empty enable enabled encoding end enough entries entry eof epoll err errno error errors eventfd eventpoll
  eventpoll-tfd events exec exec-cmd execute exist existing exists exit exited expect expected expecting ext extended_size
  external fail failed failure family fanotify fcntl fd fdflags fdinfo fdinfo-s fdopen fds fdstore feature fetch fetched fhandle
  fiemap fifo file file-locks files fill filling filter find find_tfd_bsearch finished first fixed fixup flag flags fle
  floating-point flock fmt following fop fopen for fork forking format found fpu free freeze freezer from fs fsnotify fsopen
  fstat fstatat full fully functional further fuse fusectl fxsr general generated get getsockopt gettimeofday getting ghost
  ghosts gid global going got gp gpu gpu_id gpuinfo gpus group groups grow growing guard had handle handler handling hardware
  has hash have head header headers helper hint hole holes hook hooks host hostname hugetlb i_ino id ids idx if ifindex
  ifpriomap ignored ignoring image images img in in-flight in_progress inaccessible index inet infect info information inherit
  inherited init initialize initializing inject ino inode inotify inplace instead instruction interface interrupt interrupted
  intersects into invalid inventory ioctl iolinks iov iovs ip ipc iptables iptables-restore ipv irmap is isn't it it_interval
  it_value item its itself join-ns kcmp-yes kdat kerndat kernel kernels key keys kfd kfd_max_buffer_size kill killed killing
  kind late later lazy lazy-pages ld leader lease least left legacy len libdrm libnftables link links linux list listen load
  loaded local lock locked lockinfo locking log loginuid long longest lookup lsm macvlan madv_guard_install madvise magic make
  making man many map map_files mapping mappings maps mark mask master match matches max may maymove mb mem membarrier memfd
  memory message messages met metadata method might minor mismatch missed missing mm mmap mmap_min_addr mnt mnt_id mnt_ns mntid
  mntns mode model_id modules monotonic more mount mounted mountinfo mounting mountpoint mountpoints mounts move moved mp mremap
  ms_private msg munmap must mutex mxcsr mxcsr_mask name namespace namespaces native nbucket nchain need needs nested net netdev
  netlink netns network network-lock new new_sp nf nft nftables nice no node non non-zombie none not note nothing nr
  nr_dropped_pages nr_enqueued nr_lazy nr_restored_pages nr_shared_pages nr_threads ns ns_mountpoint nsems nsid null number
  object objects obligated obsolete obtain obtained obtaining occupies of off offset ok old omit on on-core one only
  oom_score_adj open openable opened opening operation option options or order original osabi our out output outside overlayfs
  overwrite owner p_vaddr packet page page-pipe pagemap pagemap_scan pages pair parallel params parasite parent parse parsed
  parsing passed path paths peer peer_ino permitted personality pgid pgrp phdr pid pid_max pidfd pidfd_getfd pidfd_open pidfile
  pidns pids pie ping_group_range piov pipe pipe_id pipe_ino pipe_off pipes plain please plugin point pointer points poke policy
  poll port pos position posix post-restore ppb pr pr_set_dumpable pr_set_thp_disable prctl pre-dump pre-restore preadv prefix
  premap prepare preparing present previous priority priu private prix probing problem proc proc_self process processes profile
  program propagate properties property prot proto provided pstree pt_dynamic pt_load ptmx ptr ptrace
  ptrace_get_rseq_configuration pts pty putting qbytes qnum query queue queues r_ppc range raw rcv rcvlowat rd rdev re-create
  read reading real receive received recv redirect reg register registers regs regular rel related relative reliable relocation
  remap remaps remote remount remove render reopen repair replace reported req request require required requires reset resolve
  resolved resolving resorting resource resources resp response restart restore restore_sid restored restorer restoring result
  results resume resumed ret retrieve returned reuse revert rewriting ring rlimit rlimit_nofile root rpath rpc rseq
  rseq_abi_pointer rseq_cs rst rt rt-vdso rt_sigframe rtnl rule run running runtime s_dev same save saved scanning sched
  schedule scheduler scm scms script scripts sdma searching seccomp second section security seek segment segments segs seize
  seized selected self selinux sem semaphore semaphores send sent sequence server service session sessions set set_tid setns
  sets setsockopt settime_flags setting settings setup shadow shared sharing shm shmem shmid should shrunk shstk shutdown
  si_code sid sigaction sigactions sigchld siginfo sigmask sign signal signaled signalfd signals signature sigreturn simple sit
  size sizes skb skip skipping slave slavery small smaps snapshot sndbuf snprintf so sock sock_dgram socket socketpair sockets
  some something source space special specified splice src src_addr ssp st stack stage standalone standard start started stat
  state statfs stats status stop stopped storage store stored strategy stray stream streamer string strip strlen struct
  structure succeeded success successfully such suitable supplementary support supported swd switch switched switching symbol
  symbols sys sys_rseq syscall syscall_ip sysctl sysfs system sysv table tag take takes target task task_args tasks tcp
  tcp_repair temporary terminal terminated test tfd than that the them this thread thread_args threads ticks tid tid_real time
  timens timeout timer timerfd timers timestamps tls tmp tmpfile tmpfs to toc toff too topology total tracking transferring
  translate transport trap trapped trapping tree trimmed true truncate truncated try trying tsock tty tun tune turn turning twd
  two type uffd uid uids umask umount unable unaligned unbindable undefined unexpected unexpectedly unfreezing unix unknown
  unlink unlock unmap unreachable uns unseizing unset unshare unsupported until up update uptime use used user userns usernsd
  using usr uts va valid validated validation value values variables vdso vendor vendor_id version veth vfi via virt vma vmas
  vsx vvar wait waiting waitpid waits want warn was watch wd when which while will with without work worker working would write
  writes writing wrong xattr xfeatures_mask xgetbv xsave xsave_size xsave_size_max xsavec xsaveopt xsaves xsaves_size xstate_bv
  xstate_offsets xstate_size xstate_sizes yard yet you zero zombie
`);

/** CRIU's source files: "Error (criu/files-reg.c:1907): ..." says where to look the message up. */
export const SOURCES = list(`
  aarch64 action-scripts aio amdgpu amdgpu_plugin amdgpu_plugin_dmabuf amdgpu_plugin_drm amdgpu_plugin_topology
  amdgpu_plugin_util amdgpu_socket_utils apparmor arch autofs bfd bitmap bpfmap cgroup cgroup-props clone-noasan compel config
  cpu cr-check cr-dedup cr-dump cr-errno cr-restore cr-service criu crtools cuda cuda_plugin eventfd eventpoll external
  fault-injection fds fdstore fifo file-ids file-lock files files-ext files-reg filesystems fsnotify handle-elf handle-elf-host
  hugetlb image image-desc img-streamer infect infect-rpc infect-util ipc_ns irmap kcmp-ids kerndat lib libnetlink log log-host
  loongarch64 lsm main main-host mem memfd mips mock mount mount-v2 namespaces net netfilter page-pipe page-xfer pagemap
  pagemap-cache parasite parasite-syscall parasite-vdso path pidfd pidfd-store pie pie-cacheflush pie-util pie-util-vdso
  pie-util-vdso-elf32 pipes plugin plugins ppc64 proc_parse protobuf protobuf-desc pstree ptrace rbtree restorer riscv64
  rst-malloc s390 scm-code seccomp seize servicefd setproctitle shmem shstk sigact sigaction_compat sigaction_compat_pie
  sigframe signalfd sk-inet sk-netlink sk-packet sk-queue sk-tcp sk-unix soccr sockets src stats std string sys-exec-tbl
  syscall32 syscalls-s390 sysctl sysfs_parse test_topology_remap thread_area timens timer timerfd tls tty tun uffd unit util
  util-vdso util-vdso-elf32 uts_ns vdso vdso-compat vdso-pie x86
`);

/** Of iptables-save. */
export const IPTABLES = list(`
  a d f g i j m n o p s
  accept ack addrtype ah all any broadcast clamp-mss-to-pmtu comment commit connmark conntrack ct ctdir ctmask ctorigdst ctstate
  dccp destination dnat dport dports drop dst-type esp established filter fin forward gid-owner goto hashlimit icmp
  icmp-host-prohibited icmp-port-unreachable icmp-type icmp6-port-unreachable icmpv6 icmpv6-type in-interface input invalid
  ipv6-icmp jump length limit limit-burst local log log-level loopback mac mangle mark masquerade match mode multicast multiport
  nat new nflog nflog-group nfmask none notrack original out-interface output owner physdev postrouting prerouting probability
  protocol psh queue random random-fully raw recent redirect reject reject-with related reply restore-mark return rst save-mark
  sctp security set set-mark set-xmark snat source sport sports src-type state statistic syn tcp tcp-flags tcp-option tcp-reset
  tcpmss to-destination to-ports to-source udp uid-owner unicast untracked urg
`);

/** Of `nft list ruleset`. */
export const NFTABLES = list(`
  accept ack ackseq add admin-prohibited ah and anycast arp auto-merge blackhole bridge broadcast burst bytes cgroup chain code
  comment comp constant continue counter cpu ct ct_state daddr day dccp delete device devices direction dnat dport drop dstnat
  dup dynamic echo-reply echo-request egress elements eq esp established ether ether_addr exists expiration fib filter fin flags
  flowtable forward fully-random fwd gc-interval ge goto group gt handle hash helper hook host-unreachable hour icmp icmp-type
  icmpv6 id ifname igmp iif iifname iiftype in inc inet inet_proto inet_service ingress input interval invalid ip ip6 ipv4_addr
  ipv6_addr jhash jump l4proto label last le length level limit local log lt mangle map mark masquerade maxseg meta minute
  missing mod mtu multicast nat ne net-unreachable netdev never new nexthop nfproto not notrack numgen offload offset oif
  oifname oiftype option or original output over owner packets persist persistent pkttype policy port-unreachable postrouting
  prefix prerouting priority prohibit protocol psh queue queue-threshold quota random rate raw redirect reject related reply
  return route rst rt saddr sctp second security sequence set size skgid skuid snaplen snat socket sport srcnat state status
  symhash syn synproxy table tcp timeout to tproxy transparent type typeof udp udplite unicast unreachable until untracked
  update urg used vlan vmap week wildcard with xor zone
`);
