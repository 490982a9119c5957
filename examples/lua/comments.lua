-- A service of comments that keeps itself registered with furt, over plain JSON: Lua 5.4 and luasocket
-- (Debian: lua5.4 lua-socket; OpenBSD: lua%5.4 luasocket, and LUA=lua54). Start it with comments.sh, which says why.
--
-- It is told by its environment: FURT_GATEWAY (furt's internal listener), FURT_TOKEN (the token of its grant, if
-- that has one), SERVICE, INSTANCE (one name for each copy that runs) and PORT (0: any that is free). It goes when
-- its standard input ends.

package.path = (arg[0]:match "^.*/" or "./") .. "?.lua;" .. package.path
local socket, loop = require "socket", require "loop"

local GATEWAY, TOKEN = os.getenv "FURT_GATEWAY" or "127.0.0.1:7810", os.getenv "FURT_TOKEN"
local SERVICE, INSTANCE = os.getenv "SERVICE" or "comments", os.getenv "INSTANCE" or "default"
local PORT = tonumber(os.getenv "PORT" or 7812)
local DRAIN_SECONDS = 30
local LONGEST = 64 * 1024 -- bytes of a comment, of a head, of furt's answer
local KEPT = 1000         -- comments, the newest ones
local MOST = 200          -- connections; select takes 1024 sockets

local function say(...) io.stderr:write(SERVICE, "/", INSTANCE, ": ", string.format(...), "\n") end

-- JSON is written whole; of furt's answers only the fields that are needed are read. A key cannot be mistaken for
-- the same word inside a string: there its quotes would have backslashes.

local function json(value)
  if type(value) == "string" then
    return '"' .. value:gsub('[%c"\\]', function(c) return ("\\u%04x"):format(c:byte()) end) .. '"'
  elseif type(value) ~= "table" then
    return tostring(value)
  end
  local parts = {}
  if #value > 0 or not next(value) then
    for i, item in ipairs(value) do parts[i] = json(item) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for key, item in pairs(value) do parts[#parts + 1] = json(key) .. ":" .. json(item) end
  return "{" .. table.concat(parts, ",") .. "}"
end

local function text_in(answer, name) return answer:match('"' .. name .. '"%s*:%s*"([^"\\]*)"') end
local function number_in(answer, name) return tonumber(answer:match('"' .. name .. '"%s*:%s*(%d+)')) end

-- The registration.

local registering            -- its task
local registration_id, epoch -- from furt's last answer
local stopping = false

-- Status and text of furt's answer. HTTP/1.0: the answer ends when furt closes.
local function ask_furt(seconds, path, body)
  local host, port = GATEWAY:match "^%[?(.-)%]?:(%d+)$"
  local sock = loop.connect(host, port, 5)
  local _ <close> = loop.at_end(function() sock:close() end)
  local token = TOKEN and "Authorization: Bearer " .. TOKEN .. "\r\n" or ""
  local head = "POST /internal/%s HTTP/1.0\r\nHost: %s\r\nContent-Length: %d\r\n%s\r\n"
  loop.write(sock, 5, head:format(path, GATEWAY, #body, token) .. body)
  local answer = loop.read(sock, seconds, LONGEST, function() return false end)
  local status, text = answer:match "^HTTP/1%.%d (%d%d%d).-\r\n\r\n(.*)$"
  return tonumber(status) or error("closed without an answer", 0), text
end

local function register(body)
  local status, answer = ask_furt(10, "register-service", body)
  if status ~= 200 then return status, answer end
  registration_id, epoch = text_in(answer, "registration_id"), text_in(answer, "epoch")
  return status, number_in(answer, "renew_after_seconds") or error("an answer without renew_after_seconds", 0)
end

local function stay_registered(url)
  local path, losses = "/api/" .. SERVICE .. "/*", 0
  local routes = {
    { method = "GET", path = path, permission = "comments:read" },
    { method = "POST", path = path, permission = "comments:write" },
  }
  local body = json { service = SERVICE, instance = INSTANCE, url = url, routes = routes }
  while not stopping do
    local pause
    local fine, status, answer = pcall(register, body)
    if fine and status == 200 then
      -- A little early, and not in step with everybody else.
      losses, pause = 0, answer * (0.8 + 0.2 * math.random())
    elseif fine and status < 500 then
      -- A person has to mend this, in furt.conf or here: it is said, and tried again slowly.
      say("furt refuses the registration: %d %s", status, answer)
      pause = 15 + 15 * math.random()
    else
      -- furt is away. Soon at first, then less often, each service at a moment of its own.
      say("not registered: %s", status)
      losses, pause = losses + 1, math.random() * math.min(10, 0.2 * 2 ^ losses)
    end
    if not stopping then loop.pause(pause) end
  end
  -- The farewell: furt sends nothing new, waits for what is in flight, and forgets this copy. With the id, so that
  -- a farewell that comes late does not take out a successor.
  local farewell = "services/%s/instances/%s/drain?seconds=%d&registration_id=%s"
  farewell = farewell:format(SERVICE, INSTANCE, DRAIN_SECONDS, registration_id or "")
  local fine, status = pcall(ask_furt, DRAIN_SECONDS + 5, farewell, "")
  say(fine and status == 200 and "drained and deregistered" or "leaves without a farewell: %s", status)
end

-- The service.

local comments = {}

local function answer(method, path, fields, body)
  if path == "/health" then
    -- Another epoch: furt has started anew. `false`: it remembers us and would like to hear from us.
    local theirs = fields["x-furt-epoch"]
    if theirs and (theirs ~= epoch or fields["x-furt-registered"] == "false") then loop.wake(registering) end
    return "200 OK", "well"
  elseif method ~= "POST" then
    local found = {}
    for _, kept in ipairs(comments) do
      if kept.path == path then found[#found + 1] = kept.comment end
    end
    return "200 OK", found
  elseif not utf8.len(body) then
    return "400 Bad Request", "a comment is UTF-8"
  end
  -- furt has looked at the caller's key; who it is comes in this header.
  local comment = { author = fields["x-api-key-name"], text = body }
  if #comments == KEPT then table.remove(comments, 1) end
  comments[#comments + 1] = { path = path, comment = comment }
  return "201 Created", comment
end

-- One request a connection: none waits idle when it is time to go.
local connections = 0
local function serve(sock)
  connections = connections + 1
  local _ <close> = loop.at_end(function() sock:close(); connections = connections - 1 end)
  sock:settimeout(0)
  local text = loop.read(sock, 30, LONGEST, function(text) return text:find("\r\n\r\n", 1, true) end)
  local method, path, head, rest = text:match "^(%u+) ([^ ?]+)%S* HTTP/1%.%d(\r\n.-\r\n)\r\n(.*)$"
  if not method then return end
  local fields = {}
  for name, value in head:gmatch "([^\r\n:]+):[ \t]*([^\r\n]-)[ \t]*\r\n" do fields[name:lower()] = value end
  local length = not fields["transfer-encoding"] and tonumber((fields["content-length"] or "0"):match "^%d+$")
  local status, data = "411 Length Required", "a comment has a Content-Length"
  if length and length > LONGEST then
    status, data = "413 Content Too Large", "a comment has at most 64 KiB"
  elseif length then
    local body = rest .. loop.read(sock, 30, LONGEST, function(more) return #rest + #more >= length end)
    if #body ~= length then return end
    status, data = answer(method, path, fields, body)
  end
  local body = json(data)
  local answered = "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
  loop.write(sock, 30, answered:format(status, #body) .. (method == "HEAD" and "" or body))
  if not length or length > LONGEST then loop.finish(sock, 30) end
end

-- It listens before it registers: furt probes as soon as it knows the service.
local listener = assert(socket.bind("127.0.0.1", PORT, 128))
listener:settimeout(0)
registering = loop.go(stay_registered, ("http://127.0.0.1:%d"):format(select(2, listener:getsockname())))

-- Anything with these two methods can be waited for; 0 is standard input.
local input = { getfd = function() return 0 end, dirty = function() return false end }
io.stdin:setvbuf "no"
local readable
repeat
  local more = {}
  -- furt may send requests until the farewell is over.
  if loop.runs(registering) and connections < MOST then more[#more + 1] = listener end
  if not stopping then more[#more + 1] = input end
  readable = loop.turn(more)
  if readable and readable[listener] then
    local client = listener:accept()
    if client then loop.go(serve, client) end
  end
  if readable and readable[input] and not io.read(1) then
    stopping = true
    loop.wake(registering)
  end
until not readable
