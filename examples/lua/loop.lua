-- Many connections in one thread: every piece of work is a coroutine, and what has to wait for a socket yields.
-- So a slow caller, or a furt that does not answer, holds up nobody. Needs luasocket.

local socket = require "socket"

local loop = {}

-- What each coroutine waits for: a socket to "read" or "write" until a moment, or only the moment.
local tasks = {}

local function resume(task, ...)
  local fine, awaited = coroutine.resume(task, ...)
  tasks[task] = coroutine.status(task) == "suspended" and awaited or nil
  if not fine then
    coroutine.close(task) -- and with it the sockets that it held
    io.stderr:write(tostring(awaited), "\n")
  end
end

-- Starts a piece of work, which may wait from now on.
function loop.go(work, ...)
  local task = coroutine.create(work)
  resume(task, ...)
  return task
end

function loop.runs(task) return tasks[task] ~= nil end

-- Whether the socket was ready before the time was over. Without a socket: a pause.
local function wait(seconds, mode, sock)
  return coroutine.yield { till = socket.gettime() + seconds, mode = mode, sock = sock }
end
loop.pause = wait

-- Ends the pause of a task now; one that waits for a socket is left alone.
function loop.wake(task)
  local awaited = tasks[task]
  if awaited and not awaited.sock then awaited.till = 0 end
end

-- A value to hold in a `<close>` variable: what must be done at the end of a block, however that ends.
function loop.at_end(work) return setmetatable({}, { __close = work }) end

function loop.connect(host, port, seconds)
  local sock = assert(socket.tcp())
  sock:settimeout(0)
  sock:connect(host, port)
  -- A connect that failed makes it writable too, and the first write tells.
  if wait(seconds, "write", sock) then return sock end
  sock:close()
  error("no connection in time", 0)
end

-- What was read once `whole` is content with it, or the other side has no more to say.
-- `seconds`: how long each next piece may take. `most`: about how many bytes are too many.
function loop.read(sock, seconds, most, whole)
  local text = ""
  while not whole(text) do
    local data, problem, partial = sock:receive(4096)
    text = text .. (data or partial)
    if #text > most then error("too much to read", 0) end
    if problem == "closed" then break end
    if problem and problem ~= "timeout" then error(problem, 0) end
    -- Something came: it may be the whole of it.
    if partial == "" and not wait(seconds, "read", sock) then error("nothing to read in time", 0) end
  end
  return text
end

function loop.write(sock, seconds, text)
  local sent = 0
  while sent < #text do
    local last, problem, partial = sock:send(text, sent + 1)
    sent = last or partial
    if problem and (problem ~= "timeout" or not wait(seconds, "write", sock)) then error(problem, 0) end
  end
end

-- Nothing more will be written; what still comes is thrown away. To close over it could take the answer along.
function loop.finish(sock, seconds)
  sock:shutdown "send"
  local _, problem, partial
  repeat
    _, problem, partial = sock:receive(4096)
    if problem == "timeout" and partial == "" and not wait(seconds, "read", sock) then return end
  until problem and problem ~= "timeout"
end

-- One turn: waits for the sockets of all tasks and for those in `more`, and lets every task go on whose time it is.
-- Gives what is readable of `more`; nothing once there are no tasks.
function loop.turn(more)
  if not next(tasks) then return nil end
  local reading, writing, till = { table.unpack(more) }, {}, math.huge
  for _, awaited in pairs(tasks) do
    local list = awaited.mode == "read" and reading or awaited.mode == "write" and writing
    if list then list[#list + 1] = awaited.sock end
    till = math.min(till, awaited.till)
  end
  local readable, writable = socket.select(reading, writing, math.max(0, till - socket.gettime()))
  local due, now = {}, socket.gettime()
  for task, awaited in pairs(tasks) do
    local ready = awaited.sock and (readable[awaited.sock] or writable[awaited.sock])
    if ready or now >= awaited.till then due[task] = ready and true or false end
  end
  for task, ready in pairs(due) do resume(task, ready) end
  return readable
end

return loop
