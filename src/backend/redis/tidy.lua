-- Requests that are listed by a deadline that has passed. Shared by the scripts that begin with it.
local PARK = 'cs:park:{cs}:'

-- An entry of the outbox for the task that waits for this request, if one does; and whether the task may
-- still ask after it.
local function waiting_for(id, task)
  local park = redis.call('HMGET', PARK .. task, 'number', 'queue', 'waits', 'ended')
  if not park[1] or park[4] == '1' then
    return nil, false
  end
  local waits = ' ' .. (park[3] or '') .. ' '
  local is_waited = string.find(waits, ' ' .. id .. ' ', 1, true)
  return is_waited and cjson.encode({ task, park[1], park[2] or '' }), true
end

-- Lists a request that was given more time by its new deadline. Any other leaves the index; a task that
-- waits for one that has expired is to be resumed, as the outbox says from now on.
-- Returns the entries of the outbox.
local function tidy(index, outbox, now, limit, kept)
  local entries, is_known = {}, {}
  local passed = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. whole(now), 'LIMIT', '0', limit)
  local function read(id)
    local state, at = standing(id, now)
    local task = redis.call('HGET', ASK .. id, 'task') or ''
    local entry, is_asked = waiting_for(id, task)
    return state, at, entry, is_asked
  end
  for _, id in ipairs(passed) do
    local is_read, state, at, entry, is_asked = pcall(read, id)
    if not is_read then
      -- A record of another type has no state to resume by: it hinders none of the others.
      redis.call('ZREM', index, id)
    elseif state == 'open' then
      redis.call('ZADD', index, whole(at), id)
    else
      redis.call('ZREM', index, id)
      if not is_asked then
        redis.call('EXPIRE', ASK .. id, whole(math.ceil((at - now) / 1000) + tonumber(kept)))
      end
      if state == 'expired' and entry and not is_known[entry] then
        redis.call('ZADD', outbox, whole(now), entry)
        entries[#entries + 1], is_known[entry] = entry, true
      end
    end
  end
  return entries
end

