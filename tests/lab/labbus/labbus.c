// SPDX-License-Identifier: GPL-2.0
/*
 * A bus of non-volatile memory whose firmware does as it is told: it reports media
 * errors, clears them and counts what it cleared, or refuses to. The memory is
 * ordinary memory that the kernel was told to leave alone (memmap=SIZE$START).
 * libnvdimm, nd_pmem, DAX and the filesystems above are the kernel's own.
 *
 *   modprobe labbus start=0x... size=0x...
 *
 * /sys/module/labbus/parameters/
 *   inject         "OFFSET LENGTH" in bytes of the memory: a media error there, as
 *                  when hardware reports one
 *   refuse_clear   1: no error is cleared any more
 *   cleared_bytes  how much has been cleared
 */
#include <linux/atomic.h>
#include <linux/device.h>
#include <linux/ioport.h>
#include <linux/kernel.h>
#include <linux/libnvdimm.h>
#include <linux/module.h>
#include <linux/nd.h>
#include <linux/ndctl.h>

/* What Intel's Optane memory clears at a time. */
#define CLEAR_UNIT 256

static unsigned long long start, size;
module_param(start, ullong, 0444);
module_param(size, ullong, 0444);

static bool refuse_clear;
module_param(refuse_clear, bool, 0644);

static atomic64_t cleared_bytes;
static struct device *parent;
static struct nvdimm_bus *bus;
static struct nd_region *region;

static int get_cleared_bytes(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%lld\n", atomic64_read(&cleared_bytes));
}

static const struct kernel_param_ops cleared_bytes_ops = {
	.get = get_cleared_bytes,
};
module_param_cb(cleared_bytes, &cleared_bytes_ops, NULL, 0444);

/* What drivers/acpi/nfit/mce.c does about a machine check. */
static int inject(const char *text, const struct kernel_param *kp)
{
	u64 offset, length;
	int err;

	if (sscanf(text, "%llu %llu", &offset, &length) != 2)
		return -EINVAL;
	if (!length || offset >= size || length > size - offset)
		return -ERANGE;
	if (!region) /* as an argument of modprobe */
		return -ENODEV;
	err = nvdimm_bus_add_badrange(bus, start + offset, length);
	if (err)
		return err;
	nvdimm_region_notify(region, NVDIMM_REVALIDATE_POISON);
	return 0;
}

static const struct kernel_param_ops inject_ops = {
	.set = inject,
};
module_param_cb(inject, &inject_ops, NULL, 0200);

static int clear_error(struct nd_cmd_clear_error *cmd)
{
	if (READ_ONCE(refuse_clear)) {
		cmd->status = 1; /* for the ioctl; the kernel goes by the error */
		return -EIO;
	}
	atomic64_add(cmd->length, &cleared_bytes);
	cmd->cleared = cmd->length;
	return 0;
}

/* The firmware. These two commands are all that clearing takes. */
static int firmware(struct nvdimm_bus_descriptor *desc, struct nvdimm *nvdimm,
		    unsigned int cmd, void *buf, unsigned int len, int *cmd_rc)
{
	int rc = 0;

	switch (cmd) {
	case ND_CMD_ARS_CAP:
		((struct nd_cmd_ars_cap *)buf)->clear_err_unit = CLEAR_UNIT;
		break;
	case ND_CMD_CLEAR_ERROR:
		rc = clear_error(buf);
		break;
	default:
		return -ENOTTY;
	}
	if (cmd_rc)
		*cmd_rc = rc;
	return 0;
}

static struct nvdimm_bus_descriptor descriptor = {
	.provider_name = "labbus",
	.module = THIS_MODULE,
	.ndctl = firmware,
	.cmd_mask = BIT(ND_CMD_ARS_CAP) | BIT(ND_CMD_CLEAR_ERROR),
};

/* Without DIMMs (mappings) all of the region is one namespace, and with a page map
 * that has DAX: as with nd_e820.
 */
static int make_region(void)
{
	struct resource res = DEFINE_RES_MEM_NAMED(start, size, "labbus");
	struct nd_region_desc desc = { .res = &res };

	__set_bit(ND_REGION_PAGEMAP, &desc.flags);
	region = nvdimm_pmem_region_create(bus, &desc);
	return region ? 0 : -ENXIO;
}

static int __init labbus_init(void)
{
	int err;

	if (!size)
		return -EINVAL;
	parent = root_device_register("labbus");
	if (IS_ERR(parent))
		return PTR_ERR(parent);
	bus = nvdimm_bus_register(parent, &descriptor);
	err = bus ? make_region() : -ENXIO;
	if (!err)
		return 0;
	nvdimm_bus_unregister(bus); /* of none, nothing */
	root_device_unregister(parent);
	return err;
}

/* There is no exit: a bus keeps its module as long as it has a region. */
module_init(labbus_init);
MODULE_DESCRIPTION("NVDIMM bus whose media errors and clearing are on order, for tests");
MODULE_LICENSE("GPL");
