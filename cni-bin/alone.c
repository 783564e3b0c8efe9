/* The plugin for calls without an agent, as one static file: the interpreter, the library modules that the plugin uses,
 * and the plugin itself, compiled. Its start reads nothing from the node's file system. nodenet/cni/bundle.py generates
 * frozen.h (the table of modules) and frozen.S (their code). */
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <sched.h>
#include <unistd.h>

extern const unsigned char nn_frozen[];
#include "frozen.h"

static PyObject *nodenet_setns(PyObject *self, PyObject *args)
{
	int fd, kind;

	(void)self;
	if (!PyArg_ParseTuple(args, "ii", &fd, &kind))
		return NULL;
	return PyLong_FromLong(setns(fd, kind) ? errno : 0);
}

static PyMethodDef functions[] = {
	{ "setns", nodenet_setns, METH_VARARGS, "setns(2) for the calling thread: 0 or the errno." },
	{ NULL, NULL, 0, NULL },
};
static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, .m_name = "_nodenet", .m_size = -1, .m_methods = functions };

static PyObject *make_nodenet(void)
{
	return PyModule_Create(&definition);
}

/* Set all paths that CPython would otherwise search for. */
static void set_nowhere(PyConfig *config)
{
	wchar_t **places[] = {
		&config->home, &config->executable, &config->base_executable, &config->prefix, &config->base_prefix,
		&config->exec_prefix, &config->base_exec_prefix, &config->stdlib_dir, &config->program_name,
	};

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		PyConfig_SetString(config, places[i], L"/nodenet");
	config->module_search_paths_set = 1;
}

static void start(int argc, char **argv)
{
	PyPreConfig before;
	PyConfig config;
	PyStatus status;

	PyPreConfig_InitIsolatedConfig(&before);
	before.utf8_mode = 1;
	status = Py_PreInitialize(&before);
	if (PyStatus_Exception(status))
		Py_ExitStatusException(status);
	PyImport_AppendInittab("_nodenet", make_nodenet);
	PyImport_FrozenModules = modules;
	PyConfig_InitIsolatedConfig(&config);
	config.site_import = 0;
	config.write_bytecode = 0;
	config.pathconfig_warnings = 0;
	set_nowhere(&config);
	PyConfig_SetBytesArgv(&config, argc, argv);
	status = Py_InitializeFromConfig(&config);
	if (PyStatus_Exception(status))
		Py_ExitStatusException(status);
	/* The process lives for some milliseconds, so garbage collection would only cost time. */
	PyGC_Disable();
}

int main(int argc, char **argv)
{
	start(argc, argv);
	PyObject *module = PyImport_ImportModule("nodenet.cni.alone");
	PyObject *result = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
	long status = result ? PyLong_AsLong(result) : 1;

	if (!module) {
		static const char broken[] = "{\"cniVersion\": \"1.1.0\", \"code\": 199, \"msg\": \"nodenet is not built properly\"}";
		if (write(1, broken, sizeof(broken) - 1) < 0)
			status = 1;
	}
	if (!result)
		PyErr_Print();
	/* The output of main is flushed already. Finalizing the interpreter would only cost time. */
	fflush(stderr);
	_exit((int)status);
}
